//go:build functional

package rabbit

import (
	"context"
	"encoding/binary"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy stands between a transport and the broker and can misbehave.
type proxy struct {
	listener net.Listener
	broker   string
	tasks    sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	conns   map[net.Conn]struct{}
	refuse  bool          // new connections are closed at once
	stalled chan struct{} // not nil: nothing is copied until it is closed
	oneWay  bool          // stalled holds only what goes to the broker
	clients []net.Conn    // every accepted one
}

// newProxy listens on a loopback port and gives options that lead through it.
func newProxy(t testing.TB, o Options) (*proxy, Options) {
	t.Helper()
	return newProxyOn(t, listen(t), o)
}

// newProxyOn is newProxy with a listener, which may speak TLS.
func newProxyOn(t testing.TB, listener net.Listener, o Options) (*proxy, Options) {
	t.Helper()
	p := &proxy{listener: listener, broker: o.Hosts[0].Address(), conns: map[net.Conn]struct{}{}}
	p.tasks.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.resume()
		p.cut()
		p.tasks.Wait()
	})
	h := o.Hosts[0]
	host, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	h.Name = host
	h.Port, err = strconv.Atoi(port)
	require.NoError(t, err)
	o.Hosts = []Host{h}
	return p, o
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.refuse
		p.mu.Unlock()
		if refuse {
			_ = client.Close()
			continue
		}
		broker, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.broker)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[broker] = struct{}{}, struct{}{}
		p.clients = append(p.clients, client)
		p.mu.Unlock()
		p.tasks.Go(func() { p.copy(client, broker, false) })
		p.tasks.Go(func() { p.copy(broker, client, true) })
	}
}

func (p *proxy) copy(to, from net.Conn, toBroker bool) {
	defer func() {
		_, _ = to.Close(), from.Close()
		p.mu.Lock()
		delete(p.conns, from)
		p.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		stalled := p.stalled
		if p.oneWay && !toBroker {
			stalled = nil
		}
		p.mu.Unlock()
		if stalled != nil {
			<-stalled
		}
		if _, writeErr := to.Write(buf[:n]); writeErr != nil || err != nil {
			return
		}
	}
}

// cut closes every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// down refuses new connections and closes the old ones; up ends it.
func (p *proxy) down() { p.setRefuse(true); p.cut() }
func (p *proxy) up()   { p.setRefuse(false) }

func (p *proxy) setRefuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
}

// stall holds all bytes back, as a broker that hangs; resume lets them flow.
func (p *proxy) stall() { p.setStalled(false) }

// hold does so only for what goes to the broker.
func (p *proxy) hold() { p.setStalled(true) }

func (p *proxy) setStalled(oneWay bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.oneWay = oneWay
	if p.stalled == nil {
		p.stalled = make(chan struct{})
	}
}

// accepted counts the connections so far.
func (p *proxy) accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients)
}

// inject writes a frame of its own to the newest client. The broker must be silent
// at that time.
func (p *proxy) inject(frame []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.clients[len(p.clients)-1].Write(frame)
}

// methodFrame builds an AMQP method frame on channel 0.
func methodFrame(class, method uint16, arguments []byte) []byte {
	payload := binary.BigEndian.AppendUint16(nil, class)
	payload = binary.BigEndian.AppendUint16(payload, method)
	payload = append(payload, arguments...)
	frame := binary.BigEndian.AppendUint32([]byte{1, 0, 0}, uint32(len(payload)))
	return append(append(frame, payload...), 0xce)
}

// blockedFrame and unblockedFrame are RabbitMQ's connection.blocked and connection.unblocked.
func blockedFrame(reason string) []byte {
	return methodFrame(10, 60, append([]byte{byte(len(reason))}, reason...))
}

func unblockedFrame() []byte { return methodFrame(10, 61, nil) }

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}
