-- Create a webhook of a tenant, or replace its URL. One that is new, or was disabled, begins with the
-- changes after this one; any other one goes on where it is.
local tenant, refused = counted_tenant()
if not refused and not is_there(tenant) then refused = fail('tenant_not_found') end
if refused then return refused end
local text = redis.call('HGET', WEBHOOKS, arg.hook)
local before = text and cjson.decode(text)
if not before then
  local prefix, have = arg.tenant .. '/', 0
  for _, field in ipairs(redis.call('HKEYS', WEBHOOKS)) do
    if string.sub(field, 1, #prefix) == prefix then have = have + 1 end
  end
  if have >= arg.most then return fail('too_many_webhooks', have) end
end
local revision = new_revision()
redis.call('HSET', WEBHOOKS, arg.hook, cjson.encode({
  url = arg.url, secret = arg.secret or before and before.secret or arg.new_secret,
  revision = revision, created_ms = before and before.created_ms or now_ms, updated_ms = now_ms}))
if not before or before.disabled_ms then
  redis.call('HSET', WEBHOOK_STATES, arg.hook, cjson.encode({cursor = revision}))
end
record(revision, 'put_webhook', {tenant = arg.tenant, note = arg.note})
return done({revision = revision, was_created = not before})
