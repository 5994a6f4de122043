package object

// InstanceAction is an entry of an instance's history: what a user, or a service, asked for (nova/objects/instance_action.py).
type InstanceAction struct {
	Header
	ID           int      `nova:"id"`
	Action       string   `nova:"action,null"`
	InstanceUUID string   `nova:"instance_uuid,null"`
	RequestID    string   `nova:"request_id,null"`
	UserID       string   `nova:"user_id,null"`
	ProjectID    string   `nova:"project_id,null"`
	StartTime    DateTime `nova:"start_time,null"`
	FinishTime   DateTime `nova:"finish_time,null"`
	Message      string   `nova:"message,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *InstanceAction) UnmarshalJSON(b []byte) error { return decode(b, o, "InstanceAction") }

// MarshalJSON implements json.Marshaler.
func (o InstanceAction) MarshalJSON() ([]byte, error) { return encode(&o) }

// InstanceActionEvent is what a service did for an action (nova/objects/instance_action.py).
type InstanceActionEvent struct {
	Header
	ID         int      `nova:"id"`
	Event      string   `nova:"event,null"`
	ActionID   int      `nova:"action_id,null"`
	StartTime  DateTime `nova:"start_time,null"`
	FinishTime DateTime `nova:"finish_time,null"`
	Result     string   `nova:"result,null"` // "" until it has ended
	Traceback  string   `nova:"traceback,null"`
	Host       string   `nova:"host,null"`
	Details    string   `nova:"details,null"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *InstanceActionEvent) UnmarshalJSON(b []byte) error {
	return decode(b, o, "InstanceActionEvent")
}

// MarshalJSON implements json.Marshaler.
func (o InstanceActionEvent) MarshalJSON() ([]byte, error) { return encode(&o) }
