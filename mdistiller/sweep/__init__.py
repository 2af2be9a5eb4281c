"""Many runs: planned without torch, and started on this machine or on a cluster."""
