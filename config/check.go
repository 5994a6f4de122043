package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// ownSections are the sections in which every option is ours, so that an
// unknown one is a mistake and not another service's.
var ownSections = []string{lxcSection}

// unknownOptions warns about options of our sections that do not exist.
func (l *loader) unknownOptions() {
	for _, s := range ownSections {
		for _, f := range l.files {
			for _, e := range f.keys {
				if normalizeSection(e.section) == s && l.registry.byName[name{s, e.key}] == nil {
					l.unknown(f.name, e.line, s, e.key)
				}
			}
		}
		prefix := environmentName(name{s, ""})
		for variable := range l.env {
			if opt, ok := strings.CutPrefix(variable, prefix); ok && l.registry.byName[name{s, strings.ToLower(opt)}] == nil {
				l.unknown(fromEnvironment, 0, s, strings.ToLower(opt))
			}
		}
	}
}

func (l *loader) unknown(fileName string, line int, section, opt string) {
	f := Finding{File: fileName, Line: line, Section: section, Option: opt, Message: "unknown option, ignored"}
	if near := l.nearest(section, opt); near != "" {
		f.Remedy = "did you mean " + near + "?"
	}
	l.report.warn(f)
}

// nearest gives the section's option whose name differs least, if it differs little.
func (l *loader) nearest(section, opt string) string {
	best, distance := "", len(opt)/3+2
	for _, o := range l.registry.options {
		if o.section != section {
			continue
		}
		if d := editDistance(o.option, opt); d < distance {
			best, distance = o.option, d
		}
	}
	return best
}

// editDistance counts insertions, deletions and replacements between two names.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// check looks at values that must fit each other. A value with a fault of its own is left alone.
func (l *loader) check() {
	l.checkDriver()
	l.checkLXD()
	l.checkRabbit()
	l.checkCPUs()
	l.checkLXC()
	l.checkSignatures()
	l.checkCredentials()
	c := l.registry.config
	l.checkTransport("transport_url", defaultSection, c.Default.TransportURL)
	l.checkTransport("transport_url", "oslo_messaging_notifications", c.MessagingNotifications.TransportURL)
}

// at starts a finding where an option's value is from.
func (l *loader) at(section, opt string) Finding {
	f := Finding{Section: section, Option: opt}
	if v := l.values[name{section, opt}]; v != nil {
		f.File, f.Line, f.Section = v.file, v.line, v.section
	}
	return f
}

func (l *loader) faultAt(section, opt, message, remedy string) {
	if v := l.values[name{section, opt}]; v != nil && v.failed {
		return
	}
	f := l.at(section, opt)
	f.Message, f.Remedy = message, remedy
	l.report.fault(f)
}

func (l *loader) warnAt(section, opt, message, remedy string) {
	f := l.at(section, opt)
	f.Message, f.Remedy = message, remedy
	l.report.warn(f)
}

// checkRabbit refuses what oslo.messaging refuses (_drivers/impl_rabbit.py).
func (l *loader) checkRabbit() {
	r := &l.registry.config.RabbitMQ
	if r.RabbitHAQueues && r.RabbitQuorumQueue {
		l.faultAt(rabbitSection, "rabbit_ha_queues", "cannot be combined with rabbit_quorum_queue", "turn one of them off, as on the controllers")
	}
	if r.RabbitStreamFanout && (r.RabbitQoSPrefetchCount <= 0 || !r.RabbitTransientQuorumQueue) {
		l.faultAt(rabbitSection, "rabbit_stream_fanout", "needs rabbit_qos_prefetch_count above 0 and rabbit_transient_quorum_queue",
			"set all three as on the controllers")
	}
	if r.SSLKeyFile != "" && r.SSLCertFile == "" {
		l.faultAt(rabbitSection, "ssl_key_file", "a key without a certificate", "set ssl_cert_file too")
	}
}

func (l *loader) checkCPUs() {
	c := l.registry.config
	shared := map[int]bool{}
	for _, n := range c.Compute.CPUSharedSet {
		shared[n] = true
	}
	for _, n := range c.Compute.CPUDedicatedSet {
		if shared[n] {
			l.faultAt("compute", "cpu_dedicated_set", fmt.Sprintf("CPU %d is in cpu_shared_set too", n), "give each CPU to one of the sets")
			return
		}
	}
	if c.Default.VCPUPinSet != nil && c.Compute.CPUDedicatedSet != nil {
		l.faultAt(defaultSection, "vcpu_pin_set", "cannot be combined with [compute] cpu_dedicated_set", "use [compute] cpu_shared_set instead")
	}
}

// barbicanBackends are castellan's names of the only key manager that is known here.
var barbicanBackends = []string{"barbican", "castellan.key_manager.barbican_key_manager.BarbicanKeyManager"}

// checkSignatures looks at whether certificates of image signatures can be had, and whether anything can boot.
func (l *loader) checkSignatures() {
	c := l.registry.config
	g := &c.Glance
	if backend := c.KeyManager.Backend; g.VerifyGlanceSignatures && !slices.Contains(barbicanBackends, backend) {
		l.faultAt("key_manager", "backend", fmt.Sprintf("the certificates of signed images cannot be read from %q by this agent", backend),
			"set it to barbican, or leave such hosts to nova-compute")
	}
	if g.VerifyGlanceSignatures && g.EnableCertificateValidation && len(g.DefaultTrustedCertificateIDs) == 0 {
		l.warnAt("glance", "enable_certificate_validation", "without default_trusted_certificate_ids, only servers that name trusted certificates boot", "name the certificates that every user trusts")
	}
	if g.EnableCertificateValidation && !g.VerifyGlanceSignatures && len(g.DefaultTrustedCertificateIDs) == 0 {
		l.warnAt("glance", "enable_certificate_validation", "has no effect without verify_glance_signatures or default_trusted_certificate_ids", "set one of them")
	}
}

// ephemeralFormats are the file systems of ephemeral disks; internal/storage/ephemeral makes them.
var ephemeralFormats = []string{"ext4", "xfs"}

func (l *loader) checkLXC() {
	x := &l.registry.config.LXC
	if f := l.registry.config.Default.DefaultEphemeralFormat; f != "" && !slices.Contains(ephemeralFormats, f) {
		l.warnAt(defaultSection, "default_ephemeral_format", fmt.Sprintf("%q is none of %s: servers whose flavor has an ephemeral disk are refused", f, strings.Join(ephemeralFormats, ", ")),
			"name one of these, or remove the option for ext4")
	}
	l.checkPools()
	if x.RootDiskQuota == "project" && x.AllowPrivileged {
		l.faultAt(lxcSection, "root_disk_quota", "project quotas do not bound privileged containers, which allow_privileged allows", "set it to file, or leave privileged containers to other hosts")
	}
	for _, share := range x.Shares {
		own := []string{x.StateDir, x.InstancesDir, x.ImageDir, x.ConsoleDir}
		for _, p := range x.ExtraPools {
			own = append(own, p.Dir)
		}
		for _, own := range own {
			if nested(filepath.Clean(own), share.Path) {
				l.faultAt(lxcSection, "shares", fmt.Sprintf("%s would give servers what is the agent's own in %s", share.Path, own), "share another directory")
			}
		}
	}
	if x.IDRange != nil && x.IDRange.Size < x.IDsPerInstance {
		l.faultAt(lxcSection, "id_range", "smaller than ids_per_instance", "give room for at least one instance")
	}
	if x.RootDiskMaxGB > 0 && x.RootDiskDefaultGB > x.RootDiskMaxGB {
		l.faultAt(lxcSection, "root_disk_default_gb", "larger than root_disk_max_gb", "lower it or raise the limit")
	}
}

// checkCredentials wants what the agent cannot work without.
func (l *loader) checkCredentials() {
	c := l.registry.config
	l.credentials("placement", &c.Placement.Auth)
	l.credentials("neutron", &c.Neutron.Auth)
	if c.ServiceUser.SendServiceUserToken {
		l.credentials("service_user", &c.ServiceUser.Auth)
	}
	if c.Barbican.SendServiceUserToken {
		l.credentials("barbican_service_user", &c.BarbicanServiceUser.Auth)
	}
	if c.Cinder.Auth.Type != "" {
		l.credentials("cinder", &c.Cinder.Auth)
	}
}

func (l *loader) credentials(section string, a *Auth) {
	missing := func(opt, remedy string) { l.faultAt(section, opt, "missing", remedy) }
	if a.Type == "" {
		missing("auth_type", "set it to password or v3applicationcredential, and the credentials")
		return
	}
	kind := strings.TrimPrefix(a.Type, "v3")
	if kind != "password" && kind != "applicationcredential" {
		return
	}
	if a.URL == "" {
		missing("auth_url", "the address of keystone")
	}
	if kind == "applicationcredential" {
		if a.ApplicationCredentialSecret == "" {
			missing("application_credential_secret", "needed with auth_type "+a.Type)
		}
		if a.ApplicationCredentialID == "" && a.ApplicationCredentialName == "" {
			missing("application_credential_id", "needed with auth_type "+a.Type)
		}
		return
	}
	if a.Username == "" && a.UserID == "" {
		missing("username", "needed with auth_type "+a.Type)
	}
	if a.Password == "" {
		missing("password", "needed with auth_type "+a.Type)
	}
}

func (l *loader) checkTransport(opt, section string, u Secret) {
	if u == "" {
		return
	}
	if _, err := ParseTransport(u); err != nil {
		l.faultAt(section, opt, err.Error(), "rabbit://user:password@host:5672,user:password@host2:5672/virtual_host")
	}
}
