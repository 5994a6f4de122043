package diagnostics

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/vif"
)

const (
	// samplers is how many guests are looked at side by side: reading is work of the processor's, and one may hang.
	samplers = 4
	// sampleTime bounds a scrape, whose usual limit is 10 s.
	sampleTime = 5 * time.Second
)

// Labelled is an instance as its measurements name it.
type Labelled struct {
	UUID, Name      string
	Project, Flavor string // "": not known
	VIFs            []vif.VIF
}

// Collector measures the guests of this host when it is asked to, from the kernel alone. Unlike all other collectors of the agent it
// has labels without a bound: it belongs in a registry of its own.
type Collector struct {
	instances func() ([]Labelled, error)
	sampler   driver.Sampler
	limit     time.Duration

	mu   sync.Mutex // guards busy
	busy map[string]bool
}

// NewCollector returns a collector for the instances that the function lists.
func NewCollector(instances func() ([]Labelled, error), sampler driver.Sampler) *Collector {
	return &Collector{instances: instances, sampler: sampler, limit: sampleTime, busy: map[string]bool{}}
}

var labelNames = []string{"uuid", "name", "project", "flavor"}

// family is what its series have in common.
type family struct {
	desc  *prometheus.Desc
	value prometheus.ValueType
}

func counter(name, help string, labels ...string) family {
	return newFamily(prometheus.CounterValue, name, help, labels)
}

func gauge(name, help string, labels ...string) family {
	return newFamily(prometheus.GaugeValue, name, help, labels)
}

func newFamily(value prometheus.ValueType, name, help string, labels []string) family {
	labels = append(append([]string{}, labelNames...), labels...)
	return family{prometheus.NewDesc("compute_agent_instance_"+name, help, labels, nil), value}
}

var (
	up          = gauge("up", "1: the guest runs; 0: it does not.")
	cpu         = counter("cpu_seconds_total", "Time that the guest spent on the CPUs, all together.")
	throttled   = counter("cpu_throttled_seconds_total", "Time for which the flavor's CPU limit kept the guest from running.")
	tasks       = gauge("tasks", "Processes of the guest, and their threads.")
	memoryUsed  = gauge("memory_used_bytes", "Memory of the guest without its page cache.")
	memoryCache = gauge("memory_cache_bytes", "Page cache of the guest.")
	memoryLimit = gauge("memory_limit_bytes", "Memory that the guest may use; missing: no limit.")
	swapUsed    = gauge("swap_used_bytes", "Swap space that the guest uses.")
	oomKills    = counter("oom_kills_total", "Processes of the guest that the kernel killed for want of memory.")
	diskRead    = counter("disk_read_bytes_total", "Read from disks by the guest.")
	diskReads   = counter("disk_reads_total", "Reads from disks by the guest.")
	diskWritten = counter("disk_written_bytes_total", "Written to disks by the guest.")
	diskWrites  = counter("disk_writes_total", "Writes to disks by the guest.")
	pressure    = counter("pressure_waiting_seconds_total", "Time for which some process of the guest waited for a resource (cpu, io, memory).", "resource")
	pressure10  = gauge("pressure_waiting_ratio", "Share of the last 10 s for which some process of the guest waited for a resource (cpu, io, memory).", "resource")
	rxBytes     = counter("network_receive_bytes_total", "Received by the guest at a port.", "port")
	rxPackets   = counter("network_receive_packets_total", "Packets received by the guest at a port.", "port")
	rxErrors    = counter("network_receive_errors_total", "Packets to the guest that were lost to errors at a port.", "port")
	rxDropped   = counter("network_receive_dropped_total", "Packets to the guest that were dropped at a port.", "port")
	txBytes     = counter("network_transmit_bytes_total", "Sent by the guest at a port.", "port")
	txPackets   = counter("network_transmit_packets_total", "Packets sent by the guest at a port.", "port")
	txErrors    = counter("network_transmit_errors_total", "Packets from the guest that were lost to errors at a port.", "port")
	txDropped   = counter("network_transmit_dropped_total", "Packets from the guest that were dropped at a port.", "port")

	families = []family{
		up, cpu, throttled, tasks, memoryUsed, memoryCache, memoryLimit, swapUsed, oomKills, diskRead, diskReads, diskWritten, diskWrites, pressure, pressure10,
		rxBytes, rxPackets, rxErrors, rxDropped, txBytes, txPackets, txErrors, txDropped,
	}

	unmeasured = prometheus.NewDesc("compute_agent_instances_unmeasured", "Instances that could not be measured, or not in time.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
	ch <- unmeasured
}

// Collect implements prometheus.Collector. What is not there in time is left out.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	instances, err := c.instances()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(unmeasured, err)
		return
	}
	missing := len(instances)
	c.measure(ctx, instances, func(series []prometheus.Metric) {
		missing--
		for _, metric := range series {
			ch <- metric
		}
	})
	ch <- prometheus.MustNewConstMetric(unmeasured, prometheus.GaugeValue, float64(missing))
}

// measure gives take the series of each instance until all are there or ctx ends; a look that
// hangs goes on by itself, and its instance is not looked at until it has ended.
func (c *Collector) measure(ctx context.Context, instances []Labelled, take func(series []prometheus.Metric)) {
	work := make(chan Labelled, len(instances)) // all of it
	for _, i := range instances {
		work <- i
	}
	close(work)
	found := make(chan []prometheus.Metric, len(instances)) // who comes late waits for nobody
	var workers sync.WaitGroup
	for range min(samplers, len(instances)) {
		workers.Go(func() {
			for i := range work {
				if ctx.Err() != nil || !c.begin(i.UUID) {
					continue
				}
				if series := c.instance(ctx, i); series != nil {
					found <- series
				}
				c.end(i.UUID)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		workers.Wait()
		close(done)
	}()
	for waiting := true; waiting; {
		select {
		case series := <-found:
			take(series)
		case <-ctx.Done():
			waiting = false
		case <-done:
			waiting = false
		}
	}
	for { // what is there
		select {
		case series := <-found:
			take(series)
		default:
			return
		}
	}
}

func (c *Collector) begin(uuid string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[uuid] {
		return false
	}
	c.busy[uuid] = true
	return true
}

func (c *Collector) end(uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.busy, uuid)
}

// instance measures one; nil: it could not.
func (c *Collector) instance(ctx context.Context, i Labelled) []prometheus.Metric {
	s, err := c.sampler.Sample(ctx, i.UUID)
	off := errors.Is(err, driver.ErrNotRunning) || errors.Is(err, driver.ErrNotFound) // or has just gone
	if err != nil && !off {
		reqctx.Log(ctx).WithField("instance", i.UUID).WithError(err).Debug("instance not measured")
		return nil
	}
	m := &measured{labels: i.labels()}
	if off {
		m.add(up, 0)
		return m.series
	}
	m.add(up, 1)
	m.sample(&s)
	for _, v := range i.VIFs {
		if n, err := v.Counters(); err == nil { // else its device is not there
			m.port(v.PortID, &n)
		}
	}
	return m.series
}

// labels are in the order of labelNames. Names are users' to give.
func (i *Labelled) labels() []string {
	labels := []string{i.UUID, i.Name, i.Project, i.Flavor}
	for n := range labels {
		labels[n] = strings.ToValidUTF8(labels[n], "\uFFFD")
	}
	return labels
}

// measured gathers the series of one instance.
type measured struct {
	labels []string
	series []prometheus.Metric
}

func (m *measured) add(f family, value float64, more ...string) {
	labels := append(append(make([]string, 0, len(m.labels)+len(more)), m.labels...), more...)
	metric, err := prometheus.NewConstMetric(f.desc, f.value, value, labels...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(f.desc, err)
	}
	m.series = append(m.series, metric)
}

func (m *measured) sample(s *driver.Sample) {
	u := &s.Usage
	m.add(cpu, u.CPUTime.Seconds())
	m.add(throttled, s.Throttled.Seconds())
	m.add(tasks, float64(s.Tasks))
	m.add(memoryUsed, float64(u.MemoryUsed))
	m.add(memoryCache, float64(u.MemoryCache))
	if s.MemoryLimit > 0 {
		m.add(memoryLimit, float64(s.MemoryLimit))
	}
	m.add(swapUsed, float64(u.SwapUsed))
	m.add(oomKills, float64(s.OOMKills))
	m.add(diskRead, float64(u.ReadBytes))
	m.add(diskReads, float64(u.ReadRequests))
	m.add(diskWritten, float64(u.WriteBytes))
	m.add(diskWrites, float64(u.WriteRequests))
	for _, p := range s.Pressure {
		m.add(pressure, p.Total.Seconds(), p.Resource)
		m.add(pressure10, p.Average, p.Resource)
	}
}

func (m *measured) port(id string, n *vif.Counters) {
	for _, c := range []struct {
		family family
		value  int64
	}{
		{rxBytes, n.RxBytes},
		{rxPackets, n.RxPackets},
		{rxErrors, n.RxErrors},
		{rxDropped, n.RxDropped},
		{txBytes, n.TxBytes},
		{txPackets, n.TxPackets},
		{txErrors, n.TxErrors},
		{txDropped, n.TxDropped},
	} {
		m.add(c.family, float64(c.value), id)
	}
}
