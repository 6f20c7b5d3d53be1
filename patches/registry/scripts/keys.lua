-- The keys that every script receives, in the order of KEY_NAMES, and its one JSON argument.
-- All keys that a script touches are in KEYS and carry one hash tag, as Redis Cluster requires.
local REVISION, TASKS, CHANGES, API_KEYS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BLOBS, REFS, UNUSED, GARBAGE = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local REQUEST, VERSIONS, STATES = KEYS[9], KEYS[10], KEYS[11]
local TENANTS, KEY_USES = KEYS[12], KEYS[13]
local AVAILABILITY, IDENTITY = KEYS[14], KEYS[15]
local WEBHOOKS, WEBHOOK_STATES, WEBHOOK_LEASE = KEYS[16], KEYS[17], KEYS[18]
local arg = cjson.decode(ARGV[1])
