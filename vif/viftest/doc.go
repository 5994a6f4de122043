// Package viftest is the conformance suite of vif.Plugger: every implementation
// runs it on real devices, in network namespaces that the suite makes for itself.
// It needs root and the build tag functional.
package viftest
