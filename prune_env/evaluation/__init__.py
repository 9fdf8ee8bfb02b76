"""The accuracy of plans: evaluated once, remembered, computed in this process or by workers."""
