"""What a plan is worth: test accuracy as a function of training, and how well cheap measurements predict it."""
