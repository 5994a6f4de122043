// Package neutron allocates and frees the ports of servers and reads what
// Nova's network info cache holds about them (nova/network/neutron.py).
//
// As in Nova two identities are used: what the tenant could do himself (see
// networks, create and delete ports) is done with the token of the request, and
// what needs an administrator (bindings) with the credentials of [neutron]. A
// request without token, as periodic tasks have, uses the latter for all.
//
// The order of checks and calls per port is Nova's. Because an allocation is on
// the critical path of a boot, ports are worked on in parallel, the caller hears
// of each port as soon as it is bound, and nothing is read twice.
package neutron
