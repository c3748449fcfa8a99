"""Many runs from one experiment file: points, who trains them, and what is done."""
