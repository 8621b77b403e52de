"""See the package: imported as a module, none of its functions is called."""
