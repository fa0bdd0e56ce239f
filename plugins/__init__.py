"""Hook specifications, the plugin manager and the registries that it fills."""
