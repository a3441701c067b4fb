"""Results as plain tables and sentences, and on the console."""
