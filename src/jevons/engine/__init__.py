"""Programs that run models, and how to reach them."""
