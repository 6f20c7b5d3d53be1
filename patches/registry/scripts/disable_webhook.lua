-- Stop delivering to a webhook, unless it was put again since.
local text = redis.call('HGET', WEBHOOKS, arg.hook)
local hook = text and cjson.decode(text)
if not hook or hook.revision ~= arg.hook_revision or hook.disabled_ms then
  return cjson.encode({revision = tonumber(redis.call('GET', REVISION) or '0')})
end
local revision = new_revision()
hook.disabled_ms, hook.disabled_since = now_ms, arg.reason
redis.call('HSET', WEBHOOKS, arg.hook, cjson.encode(hook))
record(revision, 'disable_webhook', {tenant = arg.tenant, note = arg.note})
return done({revision = revision, was_changed = true})
