package config

import (
	"errors"
	"regexp"
)

// services declares the sections of OpenStack's services: keystoneauth's options
// (keystoneauth1/loading/{conf,session,adapter,identity}.py) and Nova's own.
func (r *registry) services() {
	c := r.config
	r.keyManagerOptions()
	r.cinderOptions(&c.Cinder)
	r.glanceOptions(&c.Glance)

	s := r.section("keystone", "The identity service, as an endpoint.")
	sessionOptions(s, &c.Keystone.Auth)
	adapterOptions(s, &c.Keystone.Auth, "identity")

	r.neutronOptions(&c.Neutron)

	s = r.section("placement", "The placement service. Needs credentials.")
	authOptions(s, &c.Placement.Auth)
	sessionOptions(s, &c.Placement.Auth)
	adapterOptions(s, &c.Placement.Auth, "placement")

	s = r.section("service_user", "Credentials that accompany a user's token, so that a service can tell the agent from the user.")
	s.boolean(&c.ServiceUser.SendServiceUserToken, "send_service_user_token", false,
		"Whether a service token is sent. Cinder refuses to delete attachments without one since the fix of CVE-2023-2088.")
	authOptions(s, &c.ServiceUser.Auth)
	sessionOptions(s, &c.ServiceUser.Auth)

	s = r.section("vendordata_dynamic_auth", "Credentials for services that give vendor data.")
	authOptions(s, &c.VendordataDynamicAuth.Auth)
	sessionOptions(s, &c.VendordataDynamicAuth.Auth)
}

func (r *registry) cinderOptions(c *Cinder) {
	s := r.section("cinder", "The block storage service. Requests carry the user's token; the credentials are for what the agent does by itself.")
	s.pattern(&c.CatalogInfo, "catalog_info", "type:name:interface", "volumev3::publicURL", "Where Cinder is in the service catalog.", checkCatalogInfo)
	s.text(&c.EndpointTemplate, "endpoint_template", "", "Address of Cinder with %(project_id)s in it, instead of the catalog's.")
	s.text(&c.OSRegionName, "os_region_name", "", "Region of Cinder.")
	s.integer(&c.HTTPRetries, "http_retries", 3, "How often a failed request is repeated.").atLeast(0)
	s.boolean(&c.CrossAZAttach, "cross_az_attach", true, "Whether a volume of another availability zone may be attached.")
	s.boolean(&c.Debug, "debug", false, "Whether requests to Cinder are logged in detail.")
	authOptions(s, &c.Auth)
	sessionOptions(s, &c.Auth)
}

func (r *registry) glanceOptions(c *Glance) {
	s := r.section("glance", "The image service. Requests carry the user's token.")
	s.list(&c.APIServers, "api_servers", "", "Addresses of Glance, tried in random order, instead of the catalog's.")
	s.integer(&c.NumRetries, "num_retries", 3, "How often a failed request is repeated.").atLeast(0)
	s.boolean(&c.Debug, "debug", false, "Whether requests to Glance are logged in detail.")
	s.boolean(&c.VerifyGlanceSignatures, "verify_glance_signatures", false, "Whether every image must be signed. The images of servers that name trusted certificates must be in any case."+
		" The certificates are read from Barbican as the user. Hashes are always verified.")
	s.boolean(&c.EnableCertificateValidation, "enable_certificate_validation", false,
		"Whether the certificate of a signature must lead to trusted ones: the server's, else default_trusted_certificate_ids. With neither, and verify_glance_signatures, nothing boots.")
	s.list(&c.DefaultTrustedCertificateIDs, "default_trusted_certificate_ids", "",
		"Certificates trusted when a server names none; needs enable_certificate_validation. Every user must be able to read them.")
	sessionOptions(s, &c.Auth)
	adapterOptions(s, &c.Auth, "image")
	r.byName[name{"glance", "cafile"}].was("ssl", "ca_file")
	r.byName[name{"glance", "certfile"}].was("ssl", "cert_file")
	r.byName[name{"glance", "keyfile"}].was("ssl", "key_file")
	r.byName[name{"glance", "insecure"}].was("", "api_insecure")
}

// keyManagerOptions declares where the certificates of signed images are (castellan/options.py).
func (r *registry) keyManagerOptions() {
	c := r.config
	s := r.section("key_manager", "Where the certificates of signed images are.")
	s.text(&c.KeyManager.Backend, "backend", "barbican", "The key manager. Of castellan's, the agent knows barbican.").was("key_manager", "api_class")

	b := &c.Barbican
	s = r.section("barbican", "The key manager service. Requests carry the user's token.")
	s.uri(&b.BarbicanEndpoint, "barbican_endpoint", "", "Address of Barbican instead of the catalog's.")
	s.text(&b.BarbicanAPIVersion, "barbican_api_version", "", "Version of Barbican's API.").none("v1")
	s.enum(&b.BarbicanEndpointType, "barbican_endpoint_type", "public", "Interface of the endpoint to use.", "public", "internal", "admin")
	s.text(&b.BarbicanRegionName, "barbican_region_name", "", "Region of the endpoint.")
	s.boolean(&b.VerifySSL, "verify_ssl", true, "Whether certificates are checked.")
	s.text(&b.VerifySSLPath, "verify_ssl_path", "", "File with the certificate authorities to trust; unset is the system's.")
	s.boolean(&b.SendServiceUserToken, "send_service_user_token", false,
		"Whether a service token accompanies the user's, so that one that has expired meanwhile will do; the credentials are in [barbican_service_user].")

	a := &c.BarbicanServiceUser.Auth
	s = r.section("barbican_service_user", "Credentials that accompany a user's token to Barbican.")
	authOptions(s, a)
	sessionOptions(s, a)
}

func (r *registry) neutronOptions(c *Neutron) {
	s := r.section("neutron", "The network service. Needs credentials.")
	s.text(&c.OVSBridge, "ovs_bridge", "br-int", "Integration bridge of Open vSwitch, for ports that name none.")
	s.text(&c.DefaultFloatingPool, "default_floating_pool", "nova", "Pool of floating addresses; the API's.")
	s.seconds(&c.ExtensionSyncInterval, "extension_sync_interval", 600, "Age at which Neutron's list of extensions is read again.").atLeast(0)
	s.integer(&c.HTTPRetries, "http_retries", 3, "How often a failed request is repeated.").atLeast(0)
	s.list(&c.Physnets, "physnets", "", "Physical networks with sections about their NUMA nodes.")
	s.boolean(&c.ServiceMetadataProxy, "service_metadata_proxy", false, "Whether Neutron's proxy serves metadata; the API's.")
	s.secretText(&c.MetadataProxySharedSecret, "metadata_proxy_shared_secret", "", "Secret shared with that proxy.")
	authOptions(s, &c.Auth)
	sessionOptions(s, &c.Auth)
	adapterOptions(s, &c.Auth, "network")
}

// authOptions declares how to log in. All but auth_section move to the section that auth_section names.
func authOptions(s *section, a *Auth) {
	s.text(&a.Section, "auth_section", "", "Section to take the credentials from instead of this one.")
	plugin := func(field *string, opt, help string) *option {
		o := s.text(field, opt, "", help)
		o.plugin = true
		return o
	}
	hidden := func(field *Secret, opt, help string) *option {
		o := s.secretText(field, opt, "", help)
		o.plugin = true
		return o
	}
	plugin(&a.Type, "auth_type", "How to log in: password, v3applicationcredential, v3token and others.").was("", "auth_plugin")
	plugin(&a.URL, "auth_url", "Address of Keystone.")
	plugin(&a.Username, "username", "User's name.").was("", "user-name")
	plugin(&a.UserID, "user_id", "User's id.")
	hidden(&a.Password, "password", "User's password.")
	plugin(&a.UserDomainName, "user_domain_name", "Name of the user's domain.")
	plugin(&a.UserDomainID, "user_domain_id", "Id of the user's domain.")
	plugin(&a.ProjectName, "project_name", "Name of the project.").was("", "tenant-name")
	plugin(&a.ProjectID, "project_id", "Id of the project.").was("", "tenant-id")
	plugin(&a.ProjectDomainName, "project_domain_name", "Name of the project's domain.")
	plugin(&a.ProjectDomainID, "project_domain_id", "Id of the project's domain.")
	plugin(&a.DefaultDomainName, "default_domain_name", "Name of the domain where none is given.")
	plugin(&a.DefaultDomainID, "default_domain_id", "Id of the domain where none is given.")
	plugin(&a.DomainName, "domain_name", "Name of the domain to act on.")
	plugin(&a.DomainID, "domain_id", "Id of the domain to act on.")
	plugin(&a.SystemScope, "system_scope", "Scope for acting on the whole system: all.")
	plugin(&a.TrustID, "trust_id", "Id of a trust to use.")
	plugin(&a.ApplicationCredentialID, "application_credential_id", "Id of an application credential.")
	plugin(&a.ApplicationCredentialName, "application_credential_name", "Name of an application credential; needs the user.")
	hidden(&a.ApplicationCredentialSecret, "application_credential_secret", "Secret of the application credential.")
	hidden(&a.Token, "token", "Token to log in with.")
}

// sessionOptions declares how to speak HTTP.
func sessionOptions(s *section, a *Auth) {
	s.text(&a.CAFile, "cafile", "", "File with the certificate authorities to trust; unset is the system's.")
	s.text(&a.CertFile, "certfile", "", "File with a client certificate.")
	s.text(&a.KeyFile, "keyfile", "", "File with the client certificate's key.")
	s.boolean(&a.Insecure, "insecure", false, "Whether certificates go unchecked.")
	s.seconds(&a.Timeout, "timeout", 0, "Time for a request.").atLeast(0).none("a minute to read, five to change")
}

// adapterOptions declares how to find the endpoint.
func adapterOptions(s *section, a *Auth, serviceType string) {
	s.text(&a.ServiceType, "service_type", serviceType, "Type of the service in the catalog.")
	s.text(&a.ServiceName, "service_name", "", "Name of the service in the catalog.")
	s.list(&a.ValidInterfaces, "valid_interfaces", "internal,public", "Interfaces to use, best first.")
	s.text(&a.RegionName, "region_name", "", "Region of the endpoint.")
	s.text(&a.EndpointOverride, "endpoint_override", "", "Address of the service instead of the catalog's.")
	s.integer(&a.ConnectRetries, "connect_retries", 0, "How often a failed connection is repeated.").atLeast(0).none("0")
	s.fraction(&a.ConnectRetryDelay, "connect_retry_delay", "", "Time between two such connections.").atLeast(0).none("0.5, doubled each time")
	s.integer(&a.StatusCodeRetries, "status_code_retries", 0, "How often a request with a retriable status is repeated.").atLeast(0).none("0")
	s.fraction(&a.StatusCodeRetryDelay, "status_code_retry_delay", "", "Time between two such requests.").atLeast(0).none("0.5, doubled each time")
	s.integers(&a.RetriableStatusCodes, "retriable_status_codes", "", "HTTP statuses that are retriable.").none("503")
}

var catalogInfo = regexp.MustCompile(`^\w+:\w*:.*$`)

func checkCatalogInfo(v string) error {
	if !catalogInfo.MatchString(v) {
		return errors.New("not type:name:interface")
	}
	return nil
}
