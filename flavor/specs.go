package flavor

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Bounds of the kernel's CPU controller, in microseconds and shares
// (kernel/sched/core.c: min_cfs_quota_period, max_cfs_quota_period; MIN_SHARES, MAX_SHARES).
const (
	defaultPeriodUS = 100_000
	minPeriodUS     = 1_000
	maxPeriodUS     = 1_000_000
	minQuotaUS      = 1_000
	minShares       = 2
	maxShares       = 1 << 18
	sharesPerVCPU   = 1024
)

// fallbackPIDs keeps a guest finite when neither the flavor nor the host says a number.
const fallbackPIDs = 4096

// Warning names an extra spec that a container does not follow, and why the
// instance may run nevertheless.
type Warning struct {
	Key    string // e.g. "hw:boot_menu"
	Reason string // e.g. "ignored: not known for containers"
}

// String gives the warning in one line.
func (w Warning) String() string { return "extra spec " + w.Key + " " + w.Reason }

// UnsupportedError tells that the flavor asks for something that this host would
// have to pretend to give; the instance must not be built here.
type UnsupportedError struct {
	Key, Value, Reason string
}

// Error implements error.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("unsupported flavor: %s=%s: %s", e.Key, e.Value, e.Reason)
}

// InvalidError tells that a flavor's field or extra spec has a value without meaning.
type InvalidError struct {
	Key, Value, Reason string
}

// Error implements error.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid flavor: %s=%s: %s", e.Key, e.Value, e.Reason)
}

// FromSpecs turns a flavor and the host's policy into limits, with one Warning per
// extra spec that is not followed, sorted by key. The error is an *InvalidError or
// an *UnsupportedError.
//
// CPU: the guest gets vcpus × period of run time, so it uses at most as many CPUs
// as a virtual machine of that flavor could, and 1024 shares per vCPU. Nova's
// quota:cpu_quota is a bound per vCPU thread (nova/virt/libvirt/driver.py:
// _update_guest_cputune), so it is multiplied by vcpus; a vCPU thread cannot use
// more than one CPU, hence a quota above the period or below zero (libvirt: no
// bound) is one period per vCPU. quota:cpu_shares is the weight of the whole guest.
// Memory, swap and disk sizes are binary (MiB, GiB).
//
// A flag is given as lxd:NAME (nova-lxd) or lxc:NAME, with the words that
// oslo.utils takes for booleans: "False" means false, and anything else is an error.
func FromSpecs(f Flavor, p Policy) (Limits, []Warning, error) {
	b := builder{flavor: f, flags: map[string]flag{}, periodUS: defaultPeriodUS}
	if err := b.sizes(p); err != nil {
		return Limits{}, nil, err
	}
	if _, err := Shares(f); err != nil {
		return Limits{}, nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(f.ExtraSpecs)) {
		if err := b.spec(key, f.ExtraSpecs[key]); err != nil {
			return Limits{}, nil, err
		}
	}
	if err := b.finish(p); err != nil {
		return Limits{}, nil, err
	}
	slices.SortStableFunc(b.warnings, func(x, y Warning) int { return strings.Compare(x.Key, y.Key) })
	return b.limits, b.warnings, nil
}

// builder collects limits while the extra specs are read in the order of their keys.
type builder struct {
	flavor   Flavor
	limits   Limits
	warnings []Warning
	flags    map[string]flag // by the name behind "lxd:" or "lxc:"
	periodUS int64
	quotaUS  int64 // per vCPU; 0: one period
	shareKey string
}

type flag struct {
	key   string
	value bool
}

// sizes takes over the flavor's own columns.
func (b *builder) sizes(p Policy) error {
	f := b.flavor
	for _, c := range []struct {
		key       string
		value     int
		low, high int64
	}{
		{"vcpus", f.VCPUs, 1, math.MaxInt64 / maxPeriodUS},
		{"memory_mb", f.MemoryMB, 1, math.MaxInt64 >> 20},
		{"swap", f.SwapMB, 0, math.MaxInt64 >> 20},
		{"root_gb", f.RootGB, 0, math.MaxInt64 >> 30},
	} {
		if v := int64(c.value); v < c.low || v > c.high {
			return &InvalidError{Key: c.key, Value: strconv.Itoa(c.value), Reason: fmt.Sprintf("must be between %d and %d", c.low, c.high)}
		}
	}
	b.limits.MemoryBytes = int64(f.MemoryMB) << 20
	b.limits.SwapBytes = int64(f.SwapMB) << 20
	b.limits.RootGB = f.RootGB
	b.limits.CPUShares = min(maxShares, uint64(f.VCPUs)*sharesPerVCPU) //nolint:gosec // vcpus is positive, see above
	b.limits.PIDs = p.DefaultPIDs
	if b.limits.PIDs <= 0 {
		b.limits.PIDs = fallbackPIDs
	}
	return nil
}

// spec reads one extra spec.
func (b *builder) spec(key, value string) error {
	if into := b.number(key); into != nil {
		return parseInt(key, value, 0, into)
	}
	if r, ok := refusals[key]; ok {
		asks, err := r.asks(key, value)
		if err == nil && asks {
			err = &UnsupportedError{Key: key, Value: value, Reason: r.reason}
		}
		return err
	}
	switch key {
	case "quota:cpu_shares":
		return b.shares(key, value)
	case "quota:cpu_period":
		return b.period(key, value)
	case "quota:cpu_quota":
		return b.quota(key, value)
	case "lxc:pids":
		return parseInt(key, value, 1, &b.limits.PIDs)
	case poolSpec:
		return checkPool(key, value)
	}
	namespace, name, scoped := strings.Cut(key, ":")
	switch {
	case strings.HasPrefix(key, shareKey): // see Shares
		b.shareKey = key
		return nil
	case (namespace == "lxd" || namespace == "lxc") && isFlag(name):
		return b.flag(key, name, value)
	case namespace == "hw" && (strings.HasPrefix(name, "numa_cpus.") || strings.HasPrefix(name, "numa_mem.")):
		return &UnsupportedError{Key: key, Value: value, Reason: reasonNUMA}
	case scoped && isSchedulers(namespace), key == "group_policy":
		return nil
	}
	b.warn(key, "ignored: it has no meaning for containers on this host")
	return nil
}

// number returns where a plain counter of the flavor goes, or nil.
func (b *builder) number(key string) *int64 {
	d, n := &b.limits.Disk, &b.limits.Network
	switch key {
	case "quota:disk_read_bytes_sec":
		return &d.ReadBytesSec
	case "quota:disk_write_bytes_sec":
		return &d.WriteBytesSec
	case "quota:disk_total_bytes_sec":
		return &d.TotalBytesSec
	case "quota:disk_read_iops_sec":
		return &d.ReadIOPSSec
	case "quota:disk_write_iops_sec":
		return &d.WriteIOPSSec
	case "quota:disk_total_iops_sec":
		return &d.TotalIOPSSec
	case "quota:vif_inbound_average":
		return &n.InboundAverage
	case "quota:vif_inbound_peak":
		return &n.InboundPeak
	case "quota:vif_inbound_burst":
		return &n.InboundBurst
	case "quota:vif_outbound_average":
		return &n.OutboundAverage
	case "quota:vif_outbound_peak":
		return &n.OutboundPeak
	case "quota:vif_outbound_burst":
		return &n.OutboundBurst
	}
	return nil
}

func (b *builder) shares(key, value string) error {
	var n int64
	if err := parseInt(key, value, 0, &n); err != nil || n == 0 { // 0: as if not given
		return err
	}
	fits := max(minShares, min(n, maxShares))
	if fits != n {
		b.warn(key, fmt.Sprintf("is %d, the kernel takes %d", n, fits))
	}
	b.limits.CPUShares = uint64(fits)
	return nil
}

func (b *builder) period(key, value string) error {
	var n int64
	if err := parseInt(key, value, 0, &n); err != nil || n == 0 {
		return err
	}
	if n < minPeriodUS || n > maxPeriodUS {
		return &InvalidError{Key: key, Value: value, Reason: fmt.Sprintf("must be between %d and %d microseconds", minPeriodUS, maxPeriodUS)}
	}
	b.periodUS = n
	return nil
}

func (b *builder) quota(key, value string) error {
	var n int64
	if err := parseInt(key, value, math.MinInt64, &n); err != nil || n <= 0 {
		return err
	}
	if n < minQuotaUS {
		return &InvalidError{Key: key, Value: value, Reason: fmt.Sprintf("must be at least %d microseconds", minQuotaUS)}
	}
	b.quotaUS = n
	return nil
}

// flag reads a boolean that may be given in both namespaces, but not with two meanings.
func (b *builder) flag(key, name, value string) error {
	v, err := parseBool(key, value)
	if err != nil {
		return err
	}
	if other, ok := b.flags[name]; ok && other.value != v {
		return &InvalidError{Key: key, Value: value, Reason: other.key + " says otherwise"}
	}
	b.flags[name] = flag{key: key, value: v}
	return nil
}

// finish settles what depends on several extra specs.
func (b *builder) finish(p Policy) error {
	quota := b.quotaUS
	if quota == 0 || quota > b.periodUS {
		quota = b.periodUS
	}
	b.limits.CPUPeriodUS = b.periodUS
	b.limits.CPUQuotaUS = quota * int64(b.flavor.VCPUs)

	b.limits.Nested = b.flags[flagNested].value
	if f := b.flags[flagPrivileged]; f.value {
		if !p.AllowPrivileged {
			return &UnsupportedError{Key: f.key, Value: b.flavor.ExtraSpecs[f.key], Reason: "privileged containers are not allowed on this host"}
		}
		b.limits.Privileged = true
	}
	if b.shareKey != "" && b.limits.Privileged { // its root is the host's: the ids would be others, and it may mount anew what is read-only
		return &UnsupportedError{Key: b.shareKey, Value: b.flavor.ExtraSpecs[b.shareKey], Reason: "privileged containers get no directories of the host"}
	}
	if f, given := b.flags[flagIsolated]; given && !f.value {
		b.warn(f.key, "ignored: every container has an id range of its own")
	}

	d := b.limits.Disk
	if err := b.exclusive("bytes", d.TotalBytesSec, d.ReadBytesSec, d.WriteBytesSec); err != nil {
		return err
	}
	if err := b.exclusive("iops", d.TotalIOPSSec, d.ReadIOPSSec, d.WriteIOPSSec); err != nil {
		return err
	}
	n := &b.limits.Network
	b.bandwidth("inbound", &n.InboundAverage, &n.InboundPeak, &n.InboundBurst)
	b.bandwidth("outbound", &n.OutboundAverage, &n.OutboundPeak, &n.OutboundBurst)
	return nil
}

// exclusive refuses a total beside a bound of one direction, as libvirt does
// (virDomainDiskDefIotuneParse: "total and read/write cannot be set at the same time").
func (b *builder) exclusive(unit string, total, read, write int64) error {
	if total == 0 || (read == 0 && write == 0) {
		return nil
	}
	key := "quota:disk_total_" + unit + "_sec"
	return &InvalidError{Key: key, Value: b.flavor.ExtraSpecs[key], Reason: "cannot be given together with a read or write limit"}
}

// bandwidth makes the three numbers of one direction consistent: the average is
// what counts, a peak alone stands for it, a peak below it has no effect.
func (b *builder) bandwidth(direction string, average, peak, burst *int64) {
	prefix := "quota:vif_" + direction + "_"
	if *average == 0 && *peak != 0 {
		b.warn(prefix+"peak", "given without "+prefix+"average: taken for the average")
		*average = *peak
	}
	if *average == 0 && *burst != 0 {
		b.warn(prefix+"burst", "ignored: given without "+prefix+"average")
		*burst = 0
	}
	if *peak != 0 && *peak < *average {
		b.warn(prefix+"peak", "ignored: it is below "+prefix+"average")
		*peak = 0
	}
}

func (b *builder) warn(key, reason string) {
	b.warnings = append(b.warnings, Warning{Key: key, Reason: reason})
}
