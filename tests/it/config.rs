//! Configuration: valid and invalid samples, schema drift, hostile input.
