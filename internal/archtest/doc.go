// Package archtest holds the test of the arrows between packages, which docs/architecture.md draws: who imports whom, which packages
// alone may import certain libraries, and what builds without cgo.
package archtest
