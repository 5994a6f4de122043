// Package glance is the client of the image service, version 2: image records
// and the download and upload of their data, with the token of the user for
// whom the agent works (nova/image/glance.py).
package glance
