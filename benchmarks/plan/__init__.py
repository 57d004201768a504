"""What `multihead plan` predicts, beside what runs of several processes take."""
