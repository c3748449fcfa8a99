"""Many runs from one experiment file: which ones, where they are trained, what is done."""
