"""What forward does in training alone."""
