//! A private copy of sites in network namespaces on this machine, from the repository's own YAML.
