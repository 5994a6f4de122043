package config

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Summary says what the agent will use. It holds no secret.
type Summary struct {
	Files         []string   `json:"files"`
	Host          string     `json:"host"`
	MyIP          string     `json:"my_ip"`
	Release       string     `json:"release"`
	Driver        string     `json:"driver"`
	Transport     Transport  `json:"transport"`
	Exchange      string     `json:"exchange"`
	Notifications string     `json:"notifications"`
	Endpoints     []Endpoint `json:"endpoints"`
	Directories   []Named    `json:"directories"`
	Storage       string     `json:"storage"`
	Consoles      string     `json:"consoles"`
	Metrics       string     `json:"metrics"`
}

// Endpoint is where a service is and who the agent is there.
type Endpoint struct {
	Service string `json:"service"`
	Address string `json:"address"`           // or how the catalog is asked
	AuthURL string `json:"auth_url"`          // "" where the user's token is used
	User    string `json:"user,omitempty"`    // name or id
	Section string `json:"section,omitempty"` // auth_section, when the credentials are from there
}

// Named is a directory and what it is for.
type Named struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// Summarize tells what a configuration amounts to; files are those that were read.
func (c *Config) Summarize(files []string) (Summary, error) {
	transport, err := ParseTransport(c.Default.TransportURL)
	if err != nil {
		return Summary{}, fmt.Errorf("read transport_url: %w", err)
	}
	return Summary{
		Files:         files,
		Host:          c.Default.Host,
		MyIP:          c.Default.MyIP,
		Release:       c.LXC.Release,
		Driver:        c.driver(),
		Transport:     transport,
		Exchange:      c.Default.ControlExchange,
		Notifications: c.notifications(),
		Endpoints: []Endpoint{
			endpoint("placement", c.Placement.Auth),
			endpoint("network", c.Neutron.Auth),
			c.image(),
			c.volume(),
		},
		Directories: []Named{
			{"state", c.LXC.StateDir},
			{"instances", c.LXC.InstancesDir},
			{"images", c.LXC.ImageDir},
			{"consoles", c.LXC.ConsoleDir},
		},
		Storage:  c.storage(),
		Consoles: c.consoles(),
		Metrics:  cmp.Or(c.LXC.MetricsListen, "off"),
	}, nil
}

// storage names the back end, and the pools with theirs.
func (c *Config) storage() string {
	places := []string{c.LXC.StorageBackend}
	for _, p := range c.LXC.ExtraPools {
		places = append(places, fmt.Sprintf("pool %s: %s in %s", p.Name, p.Backend, p.Dir))
	}
	return strings.Join(places, ", ")
}

func (c *Config) notifications() string {
	var drivers []string
	for _, d := range c.MessagingNotifications.Driver {
		if d != "" && d != "noop" {
			drivers = append(drivers, d)
		}
	}
	if drivers == nil {
		return "off"
	}
	return c.Notifications.NotificationFormat + " by " + strings.Join(drivers, ", ")
}

func (c *Config) consoles() string {
	if !c.SerialConsole.Enabled {
		return "off"
	}
	p := c.SerialConsole
	return fmt.Sprintf("serial on %s, ports %d to %d", p.ProxyclientAddress, p.PortRange.First, p.PortRange.Last)
}

func endpoint(service string, a Auth) Endpoint {
	address := withoutUser(a.EndpointOverride)
	if address == "" {
		address = "catalog: " + strings.Join(append([]string{a.ServiceType}, a.ValidInterfaces...), " ")
		if a.RegionName != "" {
			address += ", region " + a.RegionName
		}
	}
	return Endpoint{Service: service, Address: address, AuthURL: withoutUser(a.URL), User: cmp.Or(a.Username, a.UserID, a.ApplicationCredentialName, a.ApplicationCredentialID), Section: a.Section}
}

func (c *Config) image() Endpoint {
	e := endpoint("image", c.Glance.Auth)
	if len(c.Glance.APIServers) > 0 && c.Glance.Auth.EndpointOverride == "" {
		servers := make([]string, len(c.Glance.APIServers))
		for i, s := range c.Glance.APIServers {
			servers[i] = withoutUser(s)
		}
		e.Address = strings.Join(servers, ", ")
	}
	return e
}

func (c *Config) volume() Endpoint {
	e := endpoint("volume", c.Cinder.Auth)
	e.Address = withoutUser(c.Cinder.EndpointTemplate)
	if e.Address == "" {
		e.Address = "catalog: " + c.Cinder.CatalogInfo
		if c.Cinder.OSRegionName != "" {
			e.Address += ", region " + c.Cinder.OSRegionName
		}
	}
	return e
}

// withoutUser drops a user and password that somebody put into an address.
func withoutUser(address string) string {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return address
	}
	authority, path, slash := strings.Cut(rest, "/")
	authority = authority[strings.LastIndex(authority, "@")+1:]
	if slash {
		authority += "/" + path
	}
	return scheme + "://" + authority
}

// Write prints the summary for people.
func (s Summary) Write(w io.Writer) error {
	var text strings.Builder
	row := func(label, format string, args ...any) {
		fmt.Fprintf(&text, "%s\t"+format+"\n", append([]any{label}, args...)...)
	}
	row("files", "%s", cmp.Or(strings.Join(s.Files, " "), "none"))
	row("host", "%s (%s)", s.Host, s.MyIP)
	row("release", "%s", s.Release)
	row("driver", "%s", s.Driver)
	row("transport", "%s, virtual host %s, exchange %s", strings.Join(s.Transport.Hosts, " "), s.Transport.VirtualHost, s.Exchange)
	row("notifications", "%s", s.Notifications)
	for _, e := range s.Endpoints {
		who := "user's token"
		if e.AuthURL != "" {
			who = e.User + " at " + e.AuthURL
			if e.Section != "" {
				who += ", from [" + e.Section + "]"
			}
		}
		row(e.Service, "%s (%s)", e.Address, who)
	}
	for _, d := range s.Directories {
		row(d.Name, "%s", d.Path)
	}
	row("storage", "%s", s.Storage)
	row("consoles", "%s", s.Consoles)
	row("metrics", "%s", s.Metrics)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if _, err := io.WriteString(tw, text.String()); err != nil {
		return err
	}
	return tw.Flush()
}
