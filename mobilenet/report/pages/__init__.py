"""The pages of experiments/results, one for each subject, made from committed rows."""
