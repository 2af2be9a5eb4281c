"""The commands: parse, build, run. Installed as the package `mdistiller_tools`, for the console scripts."""
