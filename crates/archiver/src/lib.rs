//! The archiving domain: datasets, datablocks, packing, digests and the ports to stores and catalogue.
