"""What forward stores on its modules."""
