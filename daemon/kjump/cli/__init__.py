"""``kjumpctl``: what a person types."""
