package object

import "encoding/json"

// The model writes null where a text or a version is unknown, and lists are never null.

// nullText is a string whose empty value is null.
type nullText string

// MarshalJSON implements json.Marshaler.
func (s nullText) MarshalJSON() ([]byte, error) {
	if s == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(s))
}

// nullInt is an integer whose zero is null.
type nullInt int

// MarshalJSON implements json.Marshaler.
func (n nullInt) MarshalJSON() ([]byte, error) {
	if n == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(int(n))
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// storeUnknown keeps what an object has besides the model's keys. Nova itself leaves such
// keys behind: a legacy notification writes label and vif_mac into the model that is saved
// later (nova/notifications/base.py:info_from_instance).
func storeUnknown(b []byte, unknown *Dict, known ...string) error {
	var all Dict
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	if all = all.Without(known...); len(all.keys) > 0 {
		*unknown = all
	}
	return nil
}

// marshalModel writes the model's keys and behind them the unknown ones.
func marshalModel(known any, unknown Dict) ([]byte, error) {
	b, err := json.Marshal(known)
	if err != nil || len(unknown.keys) == 0 {
		return b, err
	}
	more, err := json.Marshal(unknown)
	if err != nil {
		return nil, err
	}
	b[len(b)-1] = ','
	return append(b, more[1:]...), nil
}

// MarshalJSON implements json.Marshaler.
func (v VIF) MarshalJSON() ([]byte, error) {
	return marshalModel(struct {
		ID               nullText        `json:"id"`
		Address          nullText        `json:"address"`
		Network          Network         `json:"network"`
		Type             nullText        `json:"type"`
		Details          Dict            `json:"details"`
		DevName          nullText        `json:"devname"`
		OVSInterfaceID   nullText        `json:"ovs_interfaceid"`
		QBHParams        json.RawMessage `json:"qbh_params"`
		QBGParams        json.RawMessage `json:"qbg_params"`
		Active           bool            `json:"active"`
		VNICType         nullText        `json:"vnic_type"`
		Profile          Dict            `json:"profile"`
		PreserveOnDelete bool            `json:"preserve_on_delete"`
		DelegateCreate   bool            `json:"delegate_create"`
		Meta             Dict            `json:"meta"`
	}{
		nullText(v.ID), nullText(v.Address), v.Network, nullText(v.Type), v.Details, nullText(v.DevName), nullText(v.OVSInterfaceID),
		v.QBHParams, v.QBGParams, v.Active, nullText(v.VNICType), v.Profile, v.PreserveOnDelete, v.DelegateCreate, v.Meta,
	}, v.unknown)
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *VIF) UnmarshalJSON(b []byte) error {
	type plain VIF
	p := plain{DelegateCreate: true} // the model's default
	if err := json.Unmarshal(b, &p); err != nil {
		return shorten(err)
	}
	*v = VIF(p)
	return storeUnknown(b, &v.unknown, "id", "address", "network", "type", "details", "devname", "ovs_interfaceid",
		"qbh_params", "qbg_params", "active", "vnic_type", "profile", "preserve_on_delete", "delegate_create", "meta")
}

// MarshalJSON implements json.Marshaler.
func (n Network) MarshalJSON() ([]byte, error) {
	return marshalModel(struct {
		ID      nullText `json:"id"`
		Bridge  nullText `json:"bridge"`
		Label   nullText `json:"label"`
		Subnets []Subnet `json:"subnets"`
		Meta    Dict     `json:"meta"`
	}{nullText(n.ID), nullText(n.Bridge), nullText(n.Label), notNil(n.Subnets), n.Meta}, n.unknown)
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Network) UnmarshalJSON(b []byte) error {
	type plain Network
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return shorten(err)
	}
	*n = Network(p)
	return storeUnknown(b, &n.unknown, "id", "bridge", "label", "subnets", "meta")
}

// MarshalJSON implements json.Marshaler.
func (s Subnet) MarshalJSON() ([]byte, error) {
	return marshalModel(struct {
		CIDR    nullText  `json:"cidr"`
		DNS     []IP      `json:"dns"`
		Gateway *IP       `json:"gateway"`
		IPs     []FixedIP `json:"ips"`
		Routes  []Route   `json:"routes"`
		Version nullInt   `json:"version"`
		Meta    Dict      `json:"meta"`
	}{nullText(s.CIDR), notNil(s.DNS), s.Gateway, notNil(s.IPs), notNil(s.Routes), nullInt(s.Version), s.Meta}, s.unknown)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Subnet) UnmarshalJSON(b []byte) error {
	type plain Subnet
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return shorten(err)
	}
	*s = Subnet(p)
	return storeUnknown(b, &s.unknown, "cidr", "dns", "gateway", "ips", "routes", "version", "meta")
}

// MarshalJSON implements json.Marshaler.
func (i IP) MarshalJSON() ([]byte, error) {
	return marshalModel(struct {
		Address nullText `json:"address"`
		Type    nullText `json:"type"`
		Version nullInt  `json:"version"`
		Meta    Dict     `json:"meta"`
	}{nullText(i.Address), nullText(i.Type), nullInt(i.Version), i.Meta}, i.unknown)
}

// UnmarshalJSON implements json.Unmarshaler.
func (i *IP) UnmarshalJSON(b []byte) error {
	type plain IP
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return shorten(err)
	}
	*i = IP(p)
	return storeUnknown(b, &i.unknown, "address", "type", "version", "meta")
}

// MarshalJSON implements json.Marshaler.
func (i FixedIP) MarshalJSON() ([]byte, error) {
	return marshalModel(struct {
		Address     nullText `json:"address"`
		Type        nullText `json:"type"`
		Version     nullInt  `json:"version"`
		Meta        Dict     `json:"meta"`
		FloatingIPs []IP     `json:"floating_ips"`
	}{nullText(i.Address), nullText(i.Type), nullInt(i.Version), i.Meta, notNil(i.FloatingIPs)}, i.unknown)
}

// UnmarshalJSON implements json.Unmarshaler.
func (i *FixedIP) UnmarshalJSON(b []byte) error {
	type plain FixedIP
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return shorten(err)
	}
	*i = FixedIP(p)
	return storeUnknown(b, &i.unknown, "address", "type", "version", "meta", "floating_ips")
}

// MarshalJSON implements json.Marshaler.
func (r Route) MarshalJSON() ([]byte, error) {
	return marshalModel(struct {
		CIDR      nullText        `json:"cidr"`
		Gateway   *IP             `json:"gateway"`
		Interface json.RawMessage `json:"interface"`
		Meta      Dict            `json:"meta"`
	}{nullText(r.CIDR), r.Gateway, r.Interface, r.Meta}, r.unknown)
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Route) UnmarshalJSON(b []byte) error {
	type plain Route
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return shorten(err)
	}
	*r = Route(p)
	return storeUnknown(b, &r.unknown, "cidr", "gateway", "interface", "meta")
}
