"""Hook specifications, the plugin manager and the registries that it fills."""

from .hookspecs import hookimpl
from .manager import PluginInfo, PluginManager, PluginWarning, Registries, load_plugins

__all__ = ["PluginInfo", "PluginManager", "PluginWarning", "Registries", "hookimpl", "load_plugins"]
