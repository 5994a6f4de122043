// Package functional holds the tests of the whole agent: a real control plane, real containers, real links. They need root and the
// build tag functional; `make functional` runs them.
//
// Without COMPUTE_AGENT_LAB they bring up a control plane of their own (package controlplane) below COMPUTE_AGENT_LAB_BASE and end
// it afterwards; with it they use the one that is up there.
package functional
