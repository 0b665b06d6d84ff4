"""What lies on disk: run directories, checkpoints and what guards them. Nothing here trains."""
