-- Remove one of the two secrets of an API key.
local key = load_key()
if not key then return fail('key_not_found') end
local previous = valid_previous(key)
local number = key.number or 1
if previous and previous.number == arg.number then
  key.previous = nil
elseif number == arg.number then
  if not previous then return fail('last_secret', number) end
  key.last_number = key.last_number or number
  key.number, key.secret_digest, key.previous = previous.number, previous.secret_digest, nil
else
  return fail('secret_not_found')
end
local revision = new_revision()
local text = cjson.encode(key)
redis.call('HSET', API_KEYS, arg.key_id, text)
record(revision, 'revoke_secret', {
  tenant = arg.tenant, key_id = arg.key_id, note = string.format('secret %.0f', arg.number)})
return done({revision = revision, text = text})
