//go:build functional

package viftest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/vif"
	"github.com/compute-agent/compute-agent/vif/link"
)

// Env is one implementation with the network that its ports are in.
type Env struct {
	Plugger vif.Plugger
	// VIF returns the n-th port; all are in one network.
	VIF func(n int) vif.VIF
	// Wired returns what identifies a port's wiring, so that a change of it means
	// a cut, or an error if the port is not wired.
	Wired func(v vif.VIF) (string, error)
	// Left returns what is left of a port that was unplugged.
	Left func(v vif.VIF) ([]string, error)
	// NoTraffic: nothing passes between ports of this network (no backend).
	NoTraffic bool
}

// timeout bounds one plug or unplug of the suite.
const timeout = 30 * time.Second

// PortID returns the n-th port id; the part that device names take differs.
func PortID(n int) string { return fmt.Sprintf("%08x-%04x-4000-8000-00000000abcd", 0x5eed0000+n, n) }

// InstanceID returns the n-th instance id.
func InstanceID(n int) string { return fmt.Sprintf("11111111-2222-4333-8444-%012x", n) }

// MAC returns the n-th address inside a guest.
func MAC(n int) string { return fmt.Sprintf("fa:16:3e:00:%02x:%02x", n>>8, n&0xff) }

// Run runs the suite.
func Run(t *testing.T, env Env) {
	t.Run("PlugWires", func(t *testing.T) { testPlugWires(t, env) })
	t.Run("PlugTwiceChangesNothing", func(t *testing.T) { testPlugTwice(t, env) })
	t.Run("PlugChangesMTU", func(t *testing.T) { testMTU(t, env) })
	t.Run("GuestHoldsPeer", func(t *testing.T) { testGuestHolds(t, env) })
	t.Run("PeerComesBack", func(t *testing.T) { testPeerReturns(t, env) })
	t.Run("GuestDied", func(t *testing.T) { testGuestDied(t, env) })
	t.Run("UnplugUnknown", func(t *testing.T) { testUnplugUnknown(t, env) })
	t.Run("UnplugHalf", func(t *testing.T) { testUnplugHalf(t, env) })
	t.Run("ForeignDeviceStays", func(t *testing.T) { testForeign(t, env) })
	t.Run("OtherInstanceStays", func(t *testing.T) { testOtherInstance(t, env) })
	t.Run("EndedContext", func(t *testing.T) { testEndedContext(t, env) })
	t.Run("ManyAtOnce", func(t *testing.T) { testMany(t, env) })
	if !env.NoTraffic {
		t.Run("Traffic", func(t *testing.T) { testTraffic(t, env) })
	}
}

// plug plugs a port and unplugs it at the end of the test.
func plug(t *testing.T, env Env, v vif.VIF) vif.Link {
	t.Helper()
	t.Cleanup(func() { unplug(t, env, v) })
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	l, err := env.Plugger.Plug(ctx, v)
	require.NoError(t, err)
	return l
}

func unplug(t *testing.T, env Env, v vif.VIF) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
	defer cancel()
	require.NoError(t, env.Plugger.Unplug(ctx, v))
	requireClean(t, env, v)
}

func requireClean(t *testing.T, env Env, v vif.VIF) {
	t.Helper()
	left, err := env.Left(v)
	require.NoError(t, err)
	require.Empty(t, left)
	for _, name := range []string{v.HostDevice(), vif.PeerName(v.PortID)} {
		_, err := net.InterfaceByName(name)
		require.Error(t, err, "device %s is left", name)
	}
}

func wired(t *testing.T, env Env, v vif.VIF) string {
	t.Helper()
	id, err := env.Wired(v)
	require.NoError(t, err)
	return id
}

func device(t *testing.T, name string) *net.Interface {
	t.Helper()
	i, err := net.InterfaceByName(name)
	require.NoError(t, err, name)
	return i
}

func testPlugWires(t *testing.T, env Env) {
	v := env.VIF(1)
	v.MTU = 1400
	got := plug(t, env, v)
	want := vif.Link{Host: v.HostDevice(), Peer: vif.PeerName(v.PortID), MAC: v.MAC, MTU: 1400}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("link (-want +got):\n%s", diff)
	}
	wired(t, env, v)

	host, peer := device(t, got.Host), device(t, got.Peer)
	require.NotZero(t, host.Flags&net.FlagUp, "host end is up")
	require.Zero(t, peer.Flags&net.FlagUp, "the peer waits, down")
	require.Equal(t, v.MAC, peer.HardwareAddr.String())
	require.Equal(t, "fe"+v.MAC[2:], host.HardwareAddr.String())
	require.Equal(t, 1400, host.MTU)
	require.Equal(t, 1400, peer.MTU)
	require.Contains(t, Command(t, "ip", "link", "show", "dev", got.Host), "alias "+v.InstanceID)
	require.Equal(t, "1\n", Command(t, "cat", "/proc/sys/net/ipv6/conf/"+got.Host+"/disable_ipv6"))
	addresses, err := host.Addrs()
	require.NoError(t, err)
	require.Empty(t, addresses)
}

func testPlugTwice(t *testing.T, env Env) {
	v := env.VIF(1)
	first := plug(t, env, v)
	host, peer, wiring := device(t, first.Host), device(t, first.Peer), wired(t, env, v)

	second := plug(t, env, v)
	require.Equal(t, first, second)
	require.Equal(t, host.Index, device(t, second.Host).Index)
	require.Equal(t, peer.Index, device(t, second.Peer).Index)
	require.Equal(t, wiring, wired(t, env, v))
}

func testMTU(t *testing.T, env Env) {
	v := env.VIF(1)
	v.MTU = 1500
	first := plug(t, env, v)
	wiring := wired(t, env, v)
	v.MTU = 1450
	second := plug(t, env, v)
	require.Equal(t, 1450, second.MTU)
	require.Equal(t, 1450, device(t, first.Host).MTU)
	require.Equal(t, 1450, device(t, first.Peer).MTU)
	require.Equal(t, wiring, wired(t, env, v))
}

func testGuestHolds(t *testing.T, env Env) {
	v := env.VIF(1)
	first := plug(t, env, v)
	wiring := wired(t, env, v)
	g := NewGuest(t)
	g.Take(first.Peer, "10.99.0.1/24")
	look := func() string { // the kernel trusts an IPv6 address after a while
		return strings.ReplaceAll(g.Command("ip", "address", "show", "dev", "eth0"), " tentative", "")
	}
	inside := look()

	second := plug(t, env, v)
	require.Empty(t, second.Peer, "the guest holds the peer")
	require.Equal(t, wiring, wired(t, env, v))
	require.Equal(t, inside, look())
}

func testPeerReturns(t *testing.T, env Env) {
	v := env.VIF(1)
	first := plug(t, env, v)
	wiring := wired(t, env, v)
	g := NewGuest(t)
	g.Take(first.Peer, "10.99.0.1/24")
	g.Command("ip", "link", "set", "dev", "eth0", "down")
	g.Command("ip", "link", "set", "dev", "eth0", "address", "02:00:00:00:00:99")
	g.Command("ip", "link", "set", "dev", "eth0", "mtu", "1280")
	g.Return("eth0", "physback0") // the name that liblxc used on the way
	Command(t, "ip", "link", "set", "dev", "physback0", "up")

	second := plug(t, env, v)
	require.Equal(t, first, second)
	peer := device(t, second.Peer)
	require.Equal(t, v.MAC, peer.HardwareAddr.String())
	require.Equal(t, second.MTU, peer.MTU)
	require.Zero(t, peer.Flags&net.FlagUp)
	require.Equal(t, wiring, wired(t, env, v))
}

func testGuestDied(t *testing.T, env Env) {
	v := env.VIF(1)
	first := plug(t, env, v)
	index := device(t, first.Host).Index
	g := NewGuest(t)
	g.Take(first.Peer, "")
	g.Kill()
	require.Eventually(t, func() bool {
		_, err := net.InterfaceByName(first.Host)
		return err != nil
	}, timeout, 10*time.Millisecond, "the pair goes with the guest")

	second := plug(t, env, v)
	require.Equal(t, first, second)
	require.NotEqual(t, index, device(t, second.Host).Index)
	wired(t, env, v)
	if !env.NoTraffic {
		requireTraffic(t, env, v, second)
	}
}

func testUnplugUnknown(t *testing.T, env Env) {
	unplug(t, env, env.VIF(1))
	v := env.VIF(1)
	plug(t, env, v)
	unplug(t, env, v)
	unplug(t, env, v)
}

func testUnplugHalf(t *testing.T, env Env) {
	v := env.VIF(1)
	l := plug(t, env, v)
	Command(t, "ip", "link", "delete", "dev", l.Host)
	unplug(t, env, v)
}

func testForeign(t *testing.T, env Env) {
	v := env.VIF(1)
	Command(t, "ip", "tuntap", "add", "dev", v.HostDevice(), "mode", "tap")
	_, err := env.Plugger.Plug(t.Context(), v)
	require.ErrorIs(t, err, link.ErrForeign)
	require.NoError(t, env.Plugger.Unplug(t.Context(), v))
	device(t, v.HostDevice())
	Command(t, "ip", "tuntap", "delete", "dev", v.HostDevice(), "mode", "tap")
	unplug(t, env, v)
}

// testOtherInstance: a late unplug for the instance that had the port before must not
// take it from the one that has it now, and a running guest keeps its port.
func testOtherInstance(t *testing.T, env Env) {
	before := env.VIF(1)
	now := before
	now.InstanceID = InstanceID(99)
	l := plug(t, env, now)
	g := NewGuest(t)
	g.Take(l.Peer, "")
	_, err := env.Plugger.Plug(t.Context(), before)
	require.ErrorIs(t, err, link.ErrForeign)
	require.ErrorContains(t, err, now.InstanceID)

	require.NoError(t, env.Plugger.Unplug(t.Context(), before))
	device(t, l.Host)
	wired(t, env, now)
}

func testEndedContext(t *testing.T, env Env) {
	v := env.VIF(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := env.Plugger.Plug(ctx, v)
	require.ErrorIs(t, err, context.Canceled)
	unplug(t, env, v)
}

func testMany(t *testing.T, env Env) {
	const ports = 20
	each := func(what string, fn func(n int) error) {
		start := time.Now()
		var wg sync.WaitGroup
		errs := make([]error, ports)
		for n := range ports {
			wg.Go(func() { errs[n] = fn(n + 1) })
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		t.Logf("%s %d ports at once: %v", what, ports, time.Since(start).Round(time.Millisecond))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	defer cancel()
	each("plug", func(n int) error {
		_, err := env.Plugger.Plug(ctx, env.VIF(n))
		return err
	})
	for n := range ports {
		wired(t, env, env.VIF(n+1))
	}
	each("plug again", func(n int) error {
		_, err := env.Plugger.Plug(ctx, env.VIF(n))
		return err
	})
	each("unplug", func(n int) error { return env.Plugger.Unplug(ctx, env.VIF(n)) })
	for n := range ports {
		requireClean(t, env, env.VIF(n+1))
	}
}

func testTraffic(t *testing.T, env Env) {
	v := env.VIF(1)
	requireTraffic(t, env, v, plug(t, env, v))
}

// requireTraffic gives the peer of a plugged port and that of a second one to guests
// and sends a megabyte of TCP from one to the other.
func requireTraffic(t *testing.T, env Env, v vif.VIF, l vif.Link) {
	t.Helper()
	other := env.VIF(2)
	require.NotEqual(t, v.PortID, other.PortID)
	server, client := NewGuest(t), NewGuest(t)
	server.Take(l.Peer, "10.99.0.1/24")
	client.Take(plug(t, env, other).Peer, "10.99.0.2/24")
	t.Cleanup(func() { // before the ports are unplugged
		server.Kill()
		client.Kill()
	})

	want := strings.Repeat("0123456789abcdef", 1<<16)
	deadline := time.Now().Add(timeout)
	var listener net.Listener
	require.NoError(t, server.Run(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "10.99.0.1:5000")
		return err
	}))
	defer listener.Close() //nolint:errcheck // test ends
	received := make(chan string, 1)
	go func() {
		defer close(received)
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close() //nolint:errcheck // read to its end
		_ = c.SetDeadline(deadline)
		var b bytes.Buffer
		_, _ = io.Copy(&b, c)
		received <- b.String()
	}()
	start := time.Now()
	require.NoError(t, client.Run(func() error {
		c, err := (&net.Dialer{Deadline: deadline}).DialContext(t.Context(), "tcp4", "10.99.0.1:5000")
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // the receiver compares
		_ = c.SetDeadline(deadline)
		_, err = io.WriteString(c, want)
		return err
	}))
	if got := <-received; got != want {
		t.Fatalf("received %d bytes, sent %d", len(got), len(want))
	}
	t.Logf("1 MiB over TCP in %v", time.Since(start).Round(time.Millisecond))
}
