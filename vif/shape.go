package vif

import "context"

// Rate bounds one direction of an interface, in the units and the meaning that libvirt
// gives them: on average so many kilobytes a second (1000 bytes), of which Burst
// kilobytes (1024 bytes) may go at the rate Peak.
type Rate struct {
	Average int64 `json:",omitempty"` // 0: not limited
	Peak    int64 `json:",omitempty"` // 0: as Average
	Burst   int64 `json:",omitempty"` // 0: what the rate needs
}

// Bandwidth bounds an interface, seen from the guest: In is what comes to it.
type Bandwidth struct{ In, Out Rate }

// IsZero tells that nothing is limited.
func (b Bandwidth) IsZero() bool { return b == Bandwidth{} }

// Shaper limits the bandwidth of ports that are plugged.
//
// Shape makes the limits of a port's host end those of v.Bandwidth, none included; it
// may be repeated, and leaves alone what somebody else (Neutron's agent with a QoS policy) has put there.
// Unshape removes what Shape made beside the host end; that itself may be gone.
type Shaper interface {
	Shape(ctx context.Context, v VIF) error
	Unshape(ctx context.Context, v VIF) error
}

// ShapeName returns the name of the device in which a port's outgoing traffic is queued.
func ShapeName(portID string) string { return deviceName("ifb", portID) }
