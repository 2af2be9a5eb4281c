"""The command-line tools. Installed as the package `mdistiller_tools` for the console scripts."""
