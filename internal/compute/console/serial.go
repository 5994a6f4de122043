package console

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/serialconsole"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/rpc"
)

// kindSerial is the one kind of interactive console that a container has.
const kindSerial = "serial"

// SerialSettings are those of [serial_console].
type SerialSettings struct {
	Enabled     bool
	BaseURL     string // the proxy's, for users
	Address     string // this host's, for the proxy
	First, Last int    // ports
	TokenTTL    time.Duration
}

// Serial are the serial consoles of the guests of this host.
type Serial struct {
	o         SerialSettings
	host      string
	driver    driver.Driver
	conductor *conductor.Client
	server    *serialconsole.Server
}

// NewSerial returns the serial consoles; nil if there are none here.
func NewSerial(o SerialSettings, host string, d driver.Driver, c *conductor.Client, db *state.DB) *Serial {
	opener, ok := d.(driver.ConsoleOpener)
	if !o.Enabled || !ok {
		return nil
	}
	return &Serial{o: o, host: host, driver: d, conductor: c, server: serialconsole.New(serialconsole.Options{
		Address: o.Address, First: o.First, Last: o.Last, Open: opener.OpenConsole, Down: driver.ErrNotRunning, DB: db,
	})}
}

// Run serves them until ctx ends.
func (s *Serial) Run(ctx context.Context) error { return s.server.Run(ctx) }

// Authorize gives a user the way to a guest's console: a token that the proxy accepts for
// a while (nova/compute/manager.py:get_serial_console).
func (s *Serial) Authorize(ctx context.Context, inst *object.Instance, args rpc.Args) (map[string]any, error) {
	kind := kindSerial
	if err := args.DecodeOptional("console_type", &kind); err != nil {
		return nil, err
	}
	if kind != kindSerial {
		return nil, exception.ConsoleTypeInvalid(kind)
	}
	_, err := s.driver.Info(ctx, inst.UUID)
	if errors.Is(err, driver.ErrNotFound) && inst.VMState == object.VMStateBuilding {
		return nil, exception.InstanceNotReady(inst.UUID).Because(err)
	}
	if err != nil {
		return nil, err
	}
	port, err := s.server.Port(ctx, inst.UUID)
	if errors.Is(err, serialconsole.ErrNoPort) {
		return nil, exception.SocketPortRangeExhausted(s.host).Because(err)
	}
	if err != nil {
		return nil, err
	}
	token, err := s.conductor.AuthorizeConsoleToken(ctx, &object.ConsoleAuthToken{
		ConsoleType: kind, Host: s.o.Address, Port: port, InstanceUUID: inst.UUID, AccessURLBase: s.o.BaseURL,
	}, s.o.TokenTTL)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"host": s.o.Address, "port": port, "internal_access_path": nil, "token": token, "access_url": s.o.BaseURL + "?token=" + token,
	}, nil
}

// Admits answers a proxy that is about to connect; the port comes as text
// (nova/compute/manager.py:validate_console_port).
func (s *Serial) Admits(inst *object.Instance, args rpc.Args) (bool, error) {
	var port, kind string
	if err := args.Decode("port", &port); err != nil {
		return false, err
	}
	if err := args.Decode("console_type", &kind); err != nil {
		return false, err
	}
	number, err := strconv.Atoi(port)
	if s == nil || kind != kindSerial || err != nil {
		return false, nil
	}
	return s.server.Admit(inst.UUID, number), nil
}

// Forget ends an instance's console for good.
func (s *Serial) Forget(uuid string) error {
	if s == nil {
		return nil
	}
	return s.server.Forget(uuid)
}
