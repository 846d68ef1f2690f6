"""Running artifacts of GPUs: the driver, the launches of a plan, its memory and its graphs."""
