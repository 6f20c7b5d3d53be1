"""Creating and revoking API keys."""

from peterrec.patches.registry.scripts.prelude import PRELUDE

CREATE_KEY = (
    PRELUDE
    + """
if arg.is_first_only and redis.call('HLEN', API_KEYS) > 0 then return fail('keys_exist') end
local revision = new_revision()
arg.key.created_ms = now_ms
redis.call('HSET', API_KEYS, arg.key_id, cjson.encode(arg.key))
record(revision, 'create_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision, created_ms = now_ms})
"""
)

REVOKE_KEY = (
    PRELUDE
    + """
local text = redis.call('HGET', API_KEYS, arg.key_id)
if not text or cjson.decode(text).tenant ~= arg.tenant then return fail('key_not_found') end
local revision = new_revision()
redis.call('HDEL', API_KEYS, arg.key_id)
record(revision, 'revoke_key', {tenant = arg.tenant, key_id = arg.key_id})
return done({revision = revision})
"""
)
