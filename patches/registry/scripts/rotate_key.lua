-- Give an API key a new secret. The one before stays valid for arg.overlap_ms. A key never has more
-- than two valid secrets, so that nobody loses the one that is in use without noticing.
local key = load_key()
if not key then return fail('key_not_found') end
local previous = valid_previous(key)
if previous then return fail('key_rotating', previous.number) end
local revision = new_revision()
local number = key.number or 1
key.previous = nil
if arg.overlap_ms > 0 then
  key.previous = {number = number, secret_digest = key.secret_digest,
                  expires_ms = now_ms + arg.overlap_ms}
end
key.last_number = (key.last_number or number) + 1
key.number, key.secret_digest, key.rotated_ms = key.last_number, arg.secret_digest, now_ms
local text = cjson.encode(key)
redis.call('HSET', API_KEYS, arg.key_id, text)
record(revision, 'rotate_key', {
  tenant = arg.tenant, key_id = arg.key_id, note = 'secret ' .. key.number})
return done({revision = revision, text = text})
