package compute

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/serialconsole"
	"github.com/compute-agent/compute-agent/rpc"
)

// consoleSerial is the one kind of interactive console that a container has.
const consoleSerial = "serial"

// SerialConsole are the settings of [serial_console].
type SerialConsole struct {
	Enabled     bool
	BaseURL     string // the proxy's, for users
	Address     string // this host's, for the proxy
	First, Last int    // ports
	TokenTTL    time.Duration
}

// newConsoles returns the server of serial consoles, nil if there are none here.
func newConsoles(o SerialConsole, d Deps) *serialconsole.Server {
	opener, ok := d.Driver.(driver.ConsoleOpener)
	if !o.Enabled || !ok {
		return nil
	}
	return serialconsole.New(serialconsole.Options{
		Address: o.Address, First: o.First, Last: o.Last, Open: opener.OpenConsole, Down: driver.ErrNotRunning, DB: d.DB,
	})
}

// ServeConsoles serves the guests' serial consoles until ctx ends.
func (m *Manager) ServeConsoles(ctx context.Context) error {
	if m.consoles == nil {
		return nil
	}
	return m.consoles.Run(ctx)
}

// serialConsole gives a user the way to a guest's console: a token that the proxy accepts for
// a while (nova/compute/manager.py:get_serial_console).
func (m *Manager) serialConsole(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	if m.consoles == nil {
		return nil, noConsole(args)
	}
	kind := consoleSerial
	if err := args.DecodeOptional("console_type", &kind); err != nil {
		return nil, err
	}
	if kind != consoleSerial {
		return nil, exception.ConsoleTypeInvalid(kind)
	}
	_, err := m.Driver.Info(ctx, inst.UUID)
	if errors.Is(err, driver.ErrNotFound) && inst.VMState == object.VMStateBuilding {
		return nil, exception.InstanceNotReady(inst.UUID).Because(err)
	}
	if err != nil {
		return nil, err
	}
	port, err := m.consoles.Port(ctx, inst.UUID)
	if errors.Is(err, serialconsole.ErrNoPort) {
		return nil, exception.SocketPortRangeExhausted(m.opts.Host).Because(err)
	}
	if err != nil {
		return nil, err
	}
	o := m.opts.SerialConsole
	token, err := m.Conductor.AuthorizeConsoleToken(ctx, &object.ConsoleAuthToken{
		ConsoleType: kind, Host: o.Address, Port: port, InstanceUUID: inst.UUID, AccessURLBase: o.BaseURL,
	}, o.TokenTTL)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"host": o.Address, "port": port, "internal_access_path": nil, "token": token, "access_url": o.BaseURL + "?token=" + token,
	}, nil
}

// validateConsolePort answers a proxy that is about to connect; the port comes as text
// (nova/compute/manager.py:validate_console_port).
func (m *Manager) validateConsolePort(_ context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var port, kind string
	if err := args.Decode("port", &port); err != nil {
		return nil, err
	}
	if err := args.Decode("console_type", &kind); err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(port)
	if m.consoles == nil || kind != consoleSerial || err != nil {
		return false, nil
	}
	return m.consoles.Admit(inst.UUID, number), nil
}

// forgetConsole ends an instance's console for good.
func (m *Manager) forgetConsole(uuid string) error {
	if m.consoles == nil {
		return nil
	}
	return m.consoles.Forget(uuid)
}
