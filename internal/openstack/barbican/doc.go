// Package barbican reads certificates from the key manager, with the token of the context's request:
// who boots a signed image must be able to read the certificates that prove it, as with nova-compute
// (castellan/key_manager/barbican_key_manager.py).
package barbican
