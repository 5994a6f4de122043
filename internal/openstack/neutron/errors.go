package neutron

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// Errors that callers may test. Most come within an *Error, which says what
// they are about. The comments name Nova's exception classes.
var (
	ErrPortNotFound               = errors.New("port not found")                                                         // PortNotFound
	ErrPortInUse                  = errors.New("port is in use")                                                         // PortInUse
	ErrPortNotUsable              = errors.New("port belongs to another project")                                        // PortNotUsable
	ErrPortNotUsableDNS           = errors.New("dns_name of the port differs from the hostname")                         // PortNotUsableDNS
	ErrPortLimitExceeded          = errors.New("port quota is exceeded")                                                 // PortLimitExceeded
	ErrPortUpdateFailed           = errors.New("port cannot be updated")                                                 // PortUpdateFailed
	ErrBindingFailed              = errors.New("port cannot be bound to the host")                                       // PortBindingFailed
	ErrBindingActivationFailed    = errors.New("port binding cannot be activated")                                       // PortBindingActivationFailed
	ErrNetworkNotFound            = errors.New("network not found")                                                      // NetworkNotFound
	ErrNetworkAmbiguous           = errors.New("multiple possible networks found, use a network id to be more specific") // NetworkAmbiguous
	ErrNoNetwork                  = errors.New("no network is available")                                                // InterfaceAttachFailedNoNetwork
	ErrExternalNetworkForbidden   = errors.New("attaching to an external network is not permitted")                      // ExternalNetworkAttachForbidden
	ErrUnableToAutoAllocate       = errors.New("network cannot be allocated automatically")                              // UnableToAutoAllocateNetwork
	ErrQoSNotSupported            = errors.New("network with a guaranteed bandwidth policy is not supported")            // NetworksWithQoSPolicyNotSupported
	ErrFixedIPInUse               = errors.New("fixed ip is in use")                                                     // FixedIpAlreadyInUse
	ErrFixedIPInvalid             = errors.New("fixed ip is not valid for the network")                                  // InvalidInput
	ErrFixedIPInvalidOnHost       = errors.New("fixed ips are not available on the host's segment")                      // FixedIpInvalidOnHost
	ErrFixedIPNotFound            = errors.New("no port of the server has the fixed ip")                                 // FixedIpNotFoundForInstance
	ErrNetworkNotAttached         = errors.New("server has no usable port on the network")                               // NetworkNotFoundForInstance
	ErrNoMoreFixedIPs             = errors.New("no fixed ip is left")                                                    // NoMoreFixedIps
	ErrSecurityGroupNotFound      = errors.New("security group not found")                                               // SecurityGroupNotFound
	ErrSecurityGroupAmbiguous     = errors.New("multiple security groups match, use an id to be more specific")          // NoUniqueMatch
	ErrSecurityGroupNotApplicable = errors.New("security groups need a network with port_security_enabled and a subnet") // SecurityGroupCannotBeApplied
	ErrInvalidDNSName             = errors.New("hostname is not a valid dns name")                                       // InvalidInput
	ErrUnauthorized               = errors.New("token of the request is not accepted")                                   // Unauthorized
	ErrForbidden                  = errors.New("forbidden by neutron's policy")                                          // Forbidden
	ErrAdminCredentials           = errors.New("credentials of [neutron] are not accepted")                              // NeutronAdminCredentialConfigurationInvalid
)

// Error is a failure about one object. It matches its sentinel and its cause
// (an *openstack.HTTPError when Neutron said no; nil when a check did).
type Error struct {
	Sentinel error  // one of the Err… variables
	ID       string // the port, network, security group (or its name) or address
	Value    string // a further value: the port's dns_name for ErrPortNotUsableDNS
	Cause    error
}

// Error implements error.
func (e *Error) Error() string {
	text := e.Sentinel.Error()
	if e.ID != "" {
		text += ": " + e.ID
	}
	if e.Value != "" {
		text += " (" + e.Value + ")"
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap implements errors.Is and errors.As for the sentinel and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Sentinel}
	}
	return []error{e.Sentinel, e.Cause}
}

// refused adds the sentinel to refusals of a token or by policy
// (nova/network/neutron.py:ClientWrapper.proxy).
func refused(err error, user bool) error {
	switch openstack.Status(err) {
	case http.StatusUnauthorized:
		if user {
			return fmt.Errorf("%w: %w", ErrUnauthorized, err)
		}
		return fmt.Errorf("%w: %w", ErrAdminCredentials, err)
	case http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return err
}

// createError maps Neutron's refusal to create a port on a network, with an
// address if one was asked for (nova/network/neutron.py:_create_port_minimal).
func createError(err error, networkID, address string) error {
	switch openstack.Kind(err) {
	case "InvalidIpForNetwork", "InvalidIpForSubnet":
		return &Error{Sentinel: ErrFixedIPInvalid, ID: address, Value: networkID, Cause: err}
	case "IpAddressInUse", "IpAddressAlreadyAllocated":
		return &Error{Sentinel: ErrFixedIPInUse, ID: address, Cause: err}
	case "OverQuota":
		return &Error{Sentinel: ErrPortLimitExceeded, Cause: err}
	case "IpAddressGenerationFailure":
		return &Error{Sentinel: ErrNoMoreFixedIPs, ID: networkID, Cause: err}
	case "NetworkNotFound":
		return &Error{Sentinel: ErrNetworkNotFound, ID: networkID, Cause: err}
	}
	return fmt.Errorf("create port on network %s: %w", networkID, err)
}

// updateError maps Neutron's refusal to change a port (nova/network/neutron.py:_update_port).
func updateError(err error, portID string) error {
	switch openstack.Kind(err) {
	case "MacAddressInUse":
		return &Error{Sentinel: ErrPortInUse, ID: portID, Cause: err}
	case "HostNotCompatibleWithFixedIps":
		return &Error{Sentinel: ErrFixedIPInvalidOnHost, ID: portID, Cause: err}
	case "PortNotFound":
		return &Error{Sentinel: ErrPortNotFound, ID: portID, Cause: err}
	}
	return fmt.Errorf("update port %s: %w", portID, err)
}
