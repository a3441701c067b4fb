"""What loggers of Lightning get beyond the metrics of a LightningModule. log_results.py is where to read."""
