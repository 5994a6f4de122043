package config

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Transport is what may be shown of a transport_url: no user, no password, no query.
type Transport struct {
	Hosts       []string `json:"hosts"` // host:port, IPv6 in brackets
	VirtualHost string   `json:"virtual_host"`
}

// String gives the transport as a URL without credentials.
func (t Transport) String() string {
	return "rabbit://" + strings.Join(t.Hosts, ",") + "/" + url.PathEscape(strings.TrimPrefix(t.VirtualHost, "/"))
}

// rabbitPort is the port of hosts without one; oslo.messaging has no other default with TLS.
const rabbitPort = "5672"

// ParseTransport takes the showable parts out of a transport_url
// (oslo_messaging/transport.py:TransportURL.parse). Errors hold no part of the URL.
func ParseTransport(u Secret) (Transport, error) {
	scheme, rest, ok := strings.Cut(u.Reveal(), "://")
	if !ok || scheme != "rabbit" && !strings.HasPrefix(scheme, "kombu+") {
		return Transport{}, errors.New("the URL does not start with rabbit://")
	}
	rest, _, _ = strings.Cut(rest, "?")
	hosts, vhost, _ := strings.Cut(rest, "/")
	t := Transport{VirtualHost: "/"}
	decoded, err := url.PathUnescape(vhost)
	if err != nil {
		return Transport{}, errors.New("the virtual host is not percent-encoded correctly")
	}
	if decoded != "" {
		t.VirtualHost = decoded
	}
	for host := range strings.SplitSeq(hosts, ",") {
		address, err := hostPort(host[strings.LastIndex(host, "@")+1:])
		if err != nil {
			return Transport{}, err
		}
		t.Hosts = append(t.Hosts, address)
	}
	return t, nil
}

// hostPort completes one host of a transport_url.
func hostPort(h string) (string, error) {
	host, port := h, rabbitPort
	if i := strings.LastIndex(h, ":"); i >= 0 && !strings.HasSuffix(h, "]") {
		host, port = h[:i], h[i+1:]
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("a host's port is not a number from 1 to 65535")
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), nil
}
