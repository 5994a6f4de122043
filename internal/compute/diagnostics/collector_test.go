package diagnostics

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/vif"
)

var update = flag.Bool("update", false, "rewrite the expected output")

// guests are samples by UUID; a UUID without one makes Sample fail.
type guests map[string]func(context.Context) (driver.Sample, error)

func (g guests) Sample(ctx context.Context, uuid string) (driver.Sample, error) {
	if sample := g[uuid]; sample != nil {
		return sample(ctx)
	}
	return driver.Sample{}, errors.New("no such cgroup file")
}

func always(s driver.Sample, err error) func(context.Context) (driver.Sample, error) {
	return func(context.Context) (driver.Sample, error) { return s, err }
}

// scrape is what Prometheus gets.
func scrape(t *testing.T, c *Collector) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	return rec.Body.String()
}

func TestCollector(t *testing.T) {
	t.Parallel()
	v1 := driver.Sample{
		Usage: driver.Usage{
			CPUTime: 17300 * time.Millisecond, MemoryUsed: 100 << 20, MemoryCache: 20 << 20, SwapUsed: 4096,
			ReadBytes: 1, ReadRequests: 2, WriteBytes: 3, WriteRequests: 4,
		},
		Tasks: 7, Throttled: 1500 * time.Millisecond, MemoryLimit: 1 << 30, OOMKills: 2,
	}
	v2 := v1
	v2.MemoryLimit, v2.Pressure = 0, []driver.Pressure{
		{Resource: "cpu", Average: 0.125, Total: 2500 * time.Millisecond}, {Resource: "io"}, {Resource: "memory", Average: 1, Total: time.Hour},
	}
	c := NewCollector(func() ([]Labelled, error) {
		return []Labelled{
			{UUID: "u1", Name: "instance-1", Project: "p1", Flavor: "m1.small", VIFs: []vif.VIF{{PortID: "port-1", Devname: "lo-of-nobody"}}},
			{UUID: "u2", Name: "instance-2", Project: "p2", Flavor: "a \"b\"\\\xff\n"},
			{UUID: "u3", Name: "instance-3"},
			{UUID: "u4", Name: "instance-4"},
		}, nil
	}, guests{"u1": always(v1, nil), "u2": always(v2, nil), "u3": always(driver.Sample{}, driver.ErrNotRunning)})
	got, golden := scrape(t, c), filepath.Join("testdata", "instances.prom")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

func TestCollectorCountsPorts(t *testing.T) {
	t.Parallel()
	m := &measured{labels: []string{"u", "n", "p", "f"}}
	m.port("port-1", &vif.Counters{RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8})
	require.Len(t, m.series, 8)
	ports := []Labelled{{UUID: "u", VIFs: []vif.VIF{{PortID: "port-1", Devname: "lo"}}}} // every network namespace has one
	got := scrape(t, NewCollector(func() ([]Labelled, error) { return ports, nil }, guests{"u": always(driver.Sample{Tasks: 1}, nil)}))
	require.Contains(t, got, `compute_agent_instance_network_transmit_bytes_total{flavor="",name="",port="port-1",project="",uuid="u"} `)
}

func TestCollectorFailure(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	r.MustRegister(NewCollector(func() ([]Labelled, error) { return nil, errors.New("no records") }, guests{}))
	_, err := r.Gather()
	require.ErrorContains(t, err, "no records")
}

// TestCollectorDoesNotWait: guests that hang cost a scrape no more than its bound, and the next one does not look at them.
func TestCollectorDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var looks atomic.Int32
		g := guests{"stuck": func(context.Context) (driver.Sample, error) {
			looks.Add(1)
			<-release
			return driver.Sample{Tasks: 1}, nil
		}}
		list := []Labelled{{UUID: "stuck"}}
		for n := range 200 {
			uuid := "u" + strconv.Itoa(n)
			list = append(list, Labelled{UUID: uuid})
			g[uuid] = always(driver.Sample{Tasks: 1}, nil)
		}
		c := NewCollector(func() ([]Labelled, error) { return list, nil }, g)
		for range 2 {
			began := time.Now()
			got := scrape(t, c)
			require.LessOrEqual(t, time.Since(began), sampleTime)
			require.Equal(t, 200, strings.Count(got, "compute_agent_instance_up{"))
			require.Contains(t, got, "compute_agent_instances_unmeasured 1\n")
		}
		require.Equal(t, int32(1), looks.Load())
		close(release)
		synctest.Wait()
		require.Contains(t, scrape(t, c), "compute_agent_instances_unmeasured 0\n")
	})
}
