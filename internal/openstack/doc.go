// Package openstack speaks to the HTTP services of the control plane: Keystone
// authentication, endpoint discovery, and one request function that its
// sub-packages (placement, neutron, glance, cinder) share. It is the only
// importer of gophercloud.
//
// A Pool owns the connections and the tokens. Sessions are identities (one
// section of the configuration each; equal credentials share one token), and
// Services are endpoints reached with a session's token or with the token of
// the request on whose behalf the agent works.
//
// Constructors never touch the network and never fail: a node must come up
// while its control plane is down. The first call that cannot be made says
// which option of which section to look at.
package openstack
