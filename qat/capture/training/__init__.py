"""What forward computes, updates and stores in training only."""
