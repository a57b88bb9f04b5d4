"use strict";
const el = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text.replaceAll("`", "");
  element.append(...children);
  return element;
};
const resolved = (api, schema) =>
  (schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);
const type = (api, given) => {
  const schema = resolved(api, given);
  if (schema.enum) return schema.enum.join(" or ");
  if (schema.items) return `list of ${type(api, schema.items)}`;
  if (schema.oneOf) return schema.oneOf.map((one) => type(api, one)).join(" or ");
  return [schema.type || "object"].flat().join(" or ");
};
/** The fields of an object, also of the objects within it: path, what it is, whether needed. */
const fields = (api, given) => {
  const schema = resolved(api, given);
  if (schema.items) return fields(api, schema.items).map(([name, ...more]) => [`[].${name}`, ...more]);
  const parts = [...(schema.allOf || []), ...(schema.oneOf || [])].flatMap((part) => fields(api, part));
  const own = Object.entries(schema.properties || {}).flatMap(([name, about]) => [
    [name, `${type(api, about)}${about.description ? `. ${about.description}` : ""}`, (schema.required || []).includes(name)],
    ...fields(api, about).map(([inner, ...more]) => [`${name}${inner.startsWith("[") ? "" : "."}${inner}`, ...more]),
  ]);
  return [...parts, ...own];
};
(async () => {
  const place = document.getElementById("paths");
  const answer = await fetch("/openapi.json");
  if (answer.status === 401) {
    location.replace("/console/login");
    return;
  }
  const api = await answer.json();
  const sections = [];
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const section = el("section");
      section.className = "card";
      section.append(el("h2", `${method.toUpperCase()} ${path}`));
      section.append(el("p", operation.summary || operation.description || ""));
      const list = (title, pairs) => {
        if (!pairs.length) return;
        const rows = el("dl");
        for (const [name, about] of pairs) rows.append(el("dt", name), el("dd", about));
        section.append(el("h3", title), rows);
      };
      list("Parameters", (operation.parameters || []).map((p) => [`${p.name} (${p.in})`, p.description || ""]));
      const json = (place) => ((place || {}).content || {})["application/json"];
      const body = json(operation.requestBody);
      list("Body", body ? fields(api, body.schema).map(([name, about, needed]) => [needed ? name : `${name} (optional)`, about]) : []);
      list("Answers", Object.entries(operation.responses).map(([status, response]) => [status, response.description]));
      const success = json(operation.responses["200"]);
      list("Fields of 200", success ? fields(api, success.schema) : []);
      const schemes = (operation.security || []).flatMap((scheme) => Object.keys(scheme));
      section.append(el("p", schemes.length ? `Bearer token: ${schemes.join(" or ")}` : "Open"));
      section.lastChild.className = "quiet";
      sections.push(section);
    }
  }
  place.replaceChildren(...sections);
})();
