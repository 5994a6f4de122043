package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/compute"
	"github.com/compute-agent/compute-agent/internal/control"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/metrics"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/notify"
	"github.com/compute-agent/compute-agent/internal/nova/release"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/barbican"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/openstack/neutron"
	"github.com/compute-agent/compute-agent/internal/openstack/placement"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/resource"
	"github.com/compute-agent/compute-agent/internal/state"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/transfer"
	"github.com/compute-agent/compute-agent/rpc"
	"github.com/compute-agent/compute-agent/rpc/rabbit"
	"github.com/compute-agent/compute-agent/vif"
)

// retryStart is the wait before another try of a start that the control plane did not let
// succeed: short enough that a node is up soon after its control plane is.
const retryStart = 5 * time.Second

// host is what the agent has on this node, whatever the control plane does.
type host struct {
	fake    *config.FakeHost // what it reports instead of what it has; nil: it runs containers
	measure func(context.Context) (hostinfo.Info, error)
	info    hostinfo.Info // as measured at the start
	pool    []storage.IDRange
	db      *state.DB
	driver  driver.Driver
	roots   storage.Pooled
	disks   compute.EphemeralStore
	images  compute.ImageStore
	drives  compute.DriveStore
	shares  compute.ShareStore
	plugger vif.Plugger
	control control.Images // the images, for the command line
	runners []storage.Runner
	closers []func()

	manager atomic.Pointer[compute.Manager] // nil until the agent is in touch with nova
}

func (h *host) close() {
	for _, closer := range slices.Backward(h.closers) {
		closer()
	}
}

// runAgent is the service, until ctx ends.
func runAgent(ctx context.Context, sources config.Sources) error {
	c, report, err := config.Load(sources)
	if err != nil {
		return err
	}
	closeLog, err := setUpLogging(c)
	if err != nil {
		return err
	}
	defer closeLog()
	defer onHangup(func() (*config.Config, error) {
		c, _, err := config.Load(sources)
		return c, err
	})()
	log := reqctx.Log(ctx)
	for _, w := range report.Warnings() {
		log.Warning(w.String())
	}
	// Thousands of nodes run this beside their guests: memory is theirs.
	debug.SetGCPercent(50)

	h, err := openHost(ctx, c)
	if err != nil {
		return err
	}
	defer h.close()
	stopControl, err := startControl(ctx, c, h)
	if err != nil {
		return err
	}
	defer stopControl()
	kind, _ := h.driver.Version()
	log.WithFields(logrus.Fields{"version": version, "host": c.Default.Host, "driver": kind}).Info("compute-agent starts")
	err = serve(ctx, c, sources, h)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		log.Info("compute-agent stopped; the guests go on")
		return nil
	}
	return err
}

// serve connects to the control plane and carries out what it asks until ctx ends.
func serve(ctx context.Context, c *config.Config, sources config.Sources, h *host) error {
	options, err := rabbitOptions(c, c.Default.TransportURL)
	if err != nil {
		return err
	}
	bus, err := rabbit.New(options)
	if err != nil {
		return err
	}
	defer bus.Close()
	client := rpc.NewClient(bus, rpc.ClientOptions{Exchange: c.Default.ControlExchange, Timeout: c.Default.RPCResponseTimeout})
	defer client.Close()
	notifier, closeNotifier, err := newNotifier(c, bus)
	if err != nil {
		return err
	}
	defer closeNotifier()

	tellSystemd(ctx, "STATUS=waiting for the control plane")
	var s *session
	err = retry(ctx, "the control plane does not let the agent start; trying again", func() error {
		var err error
		s, err = connect(ctx, c, sources, h, client, notifier)
		return err
	})
	if err != nil {
		return err
	}
	return s.run(ctx, c, bus)
}

// retry runs step until it succeeds, ctx ends, or the failure is one that waiting does not mend.
func retry(ctx context.Context, message string, step func() error) error {
	for {
		err := step()
		var permanent *permanentError
		if err == nil || ctx.Err() != nil || errors.As(err, &permanent) {
			return err
		}
		reqctx.Log(ctx).WithError(err).Error(message)
		tellSystemd(ctx, "STATUS="+strings.ReplaceAll(err.Error(), "\n", "; "))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryStart):
		}
	}
}

// permanentError is a failure to start that only the operator can mend.
type permanentError struct{ error }

// Unwrap gives the failure itself.
func (e *permanentError) Unwrap() error { return e.error }

func newNotifier(c *config.Config, bus *rabbit.Transport) (*rpc.Notifier, func(), error) {
	m := &c.MessagingNotifications
	transport, closeTransport := bus, func() {}
	if m.TransportURL.Reveal() != "" {
		options, err := rabbitOptions(c, m.TransportURL)
		if err != nil {
			return nil, nil, err
		}
		if transport, err = rabbit.New(options); err != nil {
			return nil, nil, err
		}
		closeTransport = transport.Close
	}
	n, err := rpc.NewNotifier(transport, rpc.NotifierOptions{
		Exchange: c.Default.ControlExchange, Drivers: m.Driver, Topics: m.Topics, Retry: m.Retry,
	})
	if err != nil {
		closeTransport()
		return nil, nil, err
	}
	return n, func() { n.Close(); closeTransport() }, nil
}

// session is the agent once it has its place in the control plane.
type session struct {
	release release.Release
	neutron *neutron.Client
	service *compute.Service
	manager *compute.Manager
	runners []storage.Runner
}

// connect takes the agent's place: service record, compute node, provider, and what an
// earlier stop left undone. It may be repeated.
func connect(ctx context.Context, c *config.Config, sources config.Sources, h *host, client *rpc.Client, notifier *rpc.Notifier) (*session, error) {
	started := time.Now()
	ctx = reqctx.With(ctx, reqctx.Admin())
	api := conductor.New(client, release.Oldest())
	if err := api.WaitReady(ctx); err != nil {
		return nil, fmt.Errorf("wait for the conductor on the message bus ([DEFAULT] transport_url): %w", err)
	}
	r, err := controlPlaneRelease(ctx, c, api)
	if err != nil {
		return nil, err
	}
	api = api.WithRelease(r)
	service := compute.NewService(api, c.Default.Host, r.ServiceVersion, c.Default.ReportInterval)
	if err := service.Register(ctx); err != nil {
		return nil, err
	}
	// The first sign of life does not wait for Keystone and Placement.
	if err := service.Beat(ctx); err != nil {
		return nil, fmt.Errorf("report the service: %w", err)
	}
	clients := newClients(c)
	kind, kindVersion := h.driver.Version()
	tracker := resource.New(h.trackerOptions(trackerOptions(c, sources, r, kind, kindVersion)), resource.Deps{
		Release: r, Conductor: api, Placement: clients.placement, HostInfo: h.measure, Disk: h.roots.Usage, PoolUsage: h.roots.PoolUsage,
	})
	if err := tracker.Start(ctx, service.Record().ID); err != nil {
		if errors.Is(err, resource.ErrIdentity) {
			return nil, &permanentError{err}
		}
		return nil, err
	}
	manager := compute.New(h.managerOptions(managerOptions(c, r, h.info, h.pool)), compute.Deps{
		Release: r, Conductor: api, Tracker: tracker, Placement: clients.placement, Neutron: clients.neutron, Glance: clients.glance, Keys: clients.keys,
		Drives: h.drives, Shares: h.shares, Driver: h.driver, Roots: h.roots, Ephemeral: h.disks, Images: h.images, Plugger: h.plugger, DB: h.db,
		Transfers: transfer.NewServer(transferOptions(c)),
		Notify:    notify.New(notifier, notifyOptions(c, r, api)),
	})
	if err := manager.InitHost(ctx); err != nil {
		return nil, err
	}
	h.manager.Store(manager)
	reqctx.Log(ctx).WithFields(logrus.Fields{"release": r.Name, "elapsed_ms": time.Since(started).Milliseconds()}).Info("registered with the control plane")
	return &session{release: r, neutron: clients.neutron, service: service, manager: manager, runners: h.runners}, nil
}

// controlPlaneRelease is the operator's [lxc] release, or what the control plane says it is.
func controlPlaneRelease(ctx context.Context, c *config.Config, api *conductor.Client) (release.Release, error) {
	if c.LXC.Release != "auto" {
		return release.ByName(c.LXC.Release)
	}
	return api.DetectRelease(ctx)
}

func notifyOptions(c *config.Config, r release.Release, api *conductor.Client) notify.Options {
	n := &c.Notifications
	o := notify.Options{
		Host: c.Default.Host, Format: n.NotificationFormat, VersionedTopics: n.VersionedNotificationsTopics,
		Release: r, NameTemplate: c.Default.InstanceNameTemplate,
	}
	if len(c.Glance.APIServers) > 0 {
		o.GlanceEndpoint = c.Glance.APIServers[0]
	}
	if n.BDMsInNotifications {
		o.BDMs = api.BDMs
	}
	return o
}

// clients are the services' HTTP clients; none connects before it is used.
type clients struct {
	placement *placement.Client
	neutron   *neutron.Client
	glance    *glance.Client
	keys      *barbican.Client
}

func newClients(c *config.Config) clients {
	pool := &openstack.Pool{UserAgent: "compute-agent/" + version}
	// http_retries of [neutron] is older than keystoneauth's connect_retries and means the same.
	if c.Neutron.Auth.ConnectRetries == 0 {
		c.Neutron.Auth.ConnectRetries = c.Neutron.HTTPRetries
	}
	var serviceUser *openstack.Session
	if c.ServiceUser.SendServiceUserToken {
		serviceUser = pool.Session(authOptions("service_user", &c.ServiceUser.Auth))
	}
	service := func(section string, a *config.Auth, apiVersion string, own bool) *openstack.Service {
		var session *openstack.Session
		if own {
			session = pool.Session(authOptions(section, a))
		}
		return pool.Service(serviceOptions(section, a, apiVersion, session, serviceUser))
	}
	return clients{
		placement: placement.New(service("placement", &c.Placement.Auth, "", true)),
		neutron: neutron.New(neutron.Options{
			Service: service("neutron", &c.Neutron.Auth, "v2.0", true), OVSBridge: c.Neutron.OVSBridge,
			ExtensionSyncInterval: c.Neutron.ExtensionSyncInterval,
		}),
		glance: glance.New(glance.Options{
			Service: service("glance", &c.Glance.Auth, "v2", false), APIServers: c.Glance.APIServers, NumRetries: c.Glance.NumRetries,
		}),
		keys: barbican.New(pool.Service(barbicanOptions(c, pool))),
	}
}

// run serves until ctx ends. Then no new message is taken, what only waits is handed back to the journal, and what
// works is finished; what does not finish in time is in the journal, too, for the next start.
func (s *session) run(ctx context.Context, c *config.Config, bus *rabbit.Transport) error {
	g, gctx := errgroup.WithContext(ctx)
	endpoints := s.manager.Endpoints()
	waits := patienceOf(&c.Default)
	left := make(chan time.Time, 1) // nobody may wait for it: another part of the agent may fail
	g.Go(func() error {
		<-gctx.Done()
		left <- time.Now()
		s.manager.Leave()
		return nil
	})
	servers := make([]*rpc.Server, 0, len(s.release.Topics))
	for _, topic := range s.release.Topics {
		server := rpc.NewServer(bus, rpc.ServerOptions{
			Exchange: c.Default.ControlExchange, Topic: topic, Host: c.Default.Host,
			Workers: c.Default.ExecutorThreadPoolSize, ShutdownTimeout: waits.handlers,
		}, endpoints...)
		servers = append(servers, server)
		g.Go(func() error { return server.Run(gctx) })
	}
	g.Go(func() error { return s.service.Report(gctx) })
	g.Go(func() error {
		// The first boot does not wait for Keystone; whatever fails here is tried again there.
		if err := s.neutron.Warm(reqctx.With(gctx, reqctx.Admin())); err != nil && gctx.Err() == nil {
			reqctx.Log(gctx).WithError(err).Warning("neutron not reached yet")
		}
		return nil
	})
	g.Go(func() error { return s.manager.WatchGuests(gctx) })
	g.Go(func() error { return s.manager.ServeConsoles(gctx) })
	if c.Default.PeriodicEnable {
		g.Go(func() error { return s.manager.RunPeriodicTasks(gctx) })
	}
	for _, runner := range s.runners {
		g.Go(func() error { return runner.Run(gctx) })
	}
	if c.LXC.MetricsListen != "" {
		g.Go(func() error { return serveMetrics(gctx, c.LXC.MetricsListen, s.manager.InstanceMetrics()) })
	}
	g.Go(func() error { return announce(gctx, servers, s.service.Turns) })
	err := g.Wait()

	drain, cancel := context.WithDeadline(context.WithoutCancel(ctx), waits.deadline(<-left, time.Now()))
	defer cancel()
	if drainErr := s.manager.Drain(drain); drainErr != nil {
		reqctx.Log(ctx).Warning("operations still run at the end of manager_shutdown_timeout; the next start takes them up")
	}
	return err
}

// serveMetrics listens on [lxc] metrics_listen.
func serveMetrics(ctx context.Context, address string, instances prometheus.Collector) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for metrics ([lxc] metrics_listen): %w", err)
	}
	registry := metrics.NewRegistry(version)
	registry.MustRegister(slices.Concat(rpc.Collectors(), rabbit.Collectors(), compute.Collectors())...)
	return metrics.Serve(ctx, listener, metrics.Handler(registry, instances))
}

// announce tells systemd and the log that the agent serves, and systemd's watchdog that it lives as long as alive says so:
// one that hangs is started anew, and its guests run on.
func announce(ctx context.Context, servers []*rpc.Server, alive func() bool) error {
	for _, server := range servers {
		select {
		case <-server.Ready():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	reqctx.Log(ctx).Info("serving")
	tellSystemd(ctx, daemon.SdNotifyReady+"\nSTATUS=serving")
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if !alive() {
				reqctx.Log(ctx).Error("the service does not report any more, and the watchdog hears nothing: systemd will start the agent anew")
				continue
			}
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) // the next beat tells again
		}
	}
}

// tellSystemd passes on a change of state, if systemd started the agent.
func tellSystemd(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		reqctx.Log(ctx).WithError(err).Warning("systemd not notified")
	}
}
